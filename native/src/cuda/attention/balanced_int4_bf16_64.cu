#include "cuda/attention/balanced_integers.cuh"
#include "cuda/attention/fragment_launch.cuh"

namespace mustafar::cuda {

void attention_balanced_int4_bf16_64(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                                     int tile_count) {
    launch_fragment<__nv_bfloat16, BalancedIntegerDecoder<64, 4>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
