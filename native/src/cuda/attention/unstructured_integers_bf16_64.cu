#include "cuda/attention/fragment_launch.cuh"
#include "cuda/attention/unstructured_integers.cuh"

namespace mustafar::cuda {

void attention_unstructured_integers_bf16_64(const DeviceScope& scope, const AttentionParams& params,
                                             const AttentionPlan& plan, int tile_count) {
    launch_fragment<__nv_bfloat16, UnstructuredIntegerDecoder<64>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
