#include "cuda/attention/fragment_launch.cuh"
#include "cuda/attention/mixed_decoder.cuh"

namespace mustafar::cuda {

void attention_mixed_f16_128(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                             int tile_count) {
    launch_fragment<__half, MixedDecoder<__half, 128>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
