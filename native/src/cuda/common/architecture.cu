#include "cuda/common/architecture.h"
#include "cuda/common/launch.h"

namespace mustafar::cuda {
namespace {

// Compiled for the same architectures as all kernels.
__global__ void any_kernel() {}

}  // namespace

int kernel_architecture() {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, any_kernel), "kernels for this device");
    return attributes.ptxVersion;
}

}  // namespace mustafar::cuda
