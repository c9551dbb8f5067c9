#include "cuda/attention/integer_launch.cuh"

namespace mustafar::cuda {

void attention_all_integers_bf16_64(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                                    int tile_count) {
    launch_integers<__nv_bfloat16, AllIntegerKeys<64>, AllIntegerValues<64>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
