#include "cuda/attention/integer_launch.cuh"

namespace mustafar::cuda {

void attention_all_integers_f16_128(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                                    int tile_count) {
    launch_integers<__half, AllIntegerKeys<128>, AllIntegerValues<128>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
