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

int resident_clusters(int size, int shared_bytes) {
    const void* const kernel = reinterpret_cast<const void*>(any_kernel);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "sizes of clusters");
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(size);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size));
    config.blockDim = dim3(32);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int count = 0;
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess) return count;
    cudaGetLastError();  // a size that the device does not have
    return 0;
}

}  // namespace mustafar::cuda
