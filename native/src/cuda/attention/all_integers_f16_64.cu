#include "cuda/attention/integer_launch.cuh"

namespace mustafar::cuda {

void attention_all_integers_f16_64(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                                   int tile_count) {
    launch_integers<__half, AllIntegerKeys<64>, AllIntegerValues<64>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
