#include "cuda/attention/decoder.cuh"
#include "cuda/attention/fragment_launch.cuh"

namespace mustafar::cuda {

void attention_f16_128(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                       int tile_count) {
    launch_fragment<__half, Decoder<__half, 128>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
