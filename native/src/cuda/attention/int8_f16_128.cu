#include "cuda/attention/all_integers.cuh"
#include "cuda/attention/fragment_launch.cuh"

namespace mustafar::cuda {

void attention_int8_f16_128(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                            int tile_count) {
    launch_fragment<__half, AllIntegerDecoder<128, 8>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
