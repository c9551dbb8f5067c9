#include "cuda/common/launch.h"

#include <algorithm>
#include <mutex>

namespace mustafar::cuda {
namespace {

DeviceProperties read(int device) {
    const auto attribute = [device](cudaDeviceAttr which) {
        int value = 0;
        check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
        return value;
    };
    const int capability =
        10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
    DeviceProperties properties = {};
    properties.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
    properties.compute_capability = std::min(capability, kernel_architecture());
    properties.shared_memory_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    properties.shared_memory_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    properties.clusters[0] = properties.multiprocessors;
    if (properties.compute_capability >= 90)
        for (int i = 1; i < cluster_sizes; ++i)
            properties.clusters[i] = resident_clusters(1 << i, properties.shared_memory_per_block);
    return properties;
}

}  // namespace

const DeviceProperties& device_properties(int device) {
    static DeviceProperties known[max_devices];
    static std::once_flag once[max_devices];
    if (device < 0 || device >= max_devices)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "context.device_index: expected 0 ... %d, got %d", max_devices - 1, device);
    std::call_once(once[device], [device] { known[device] = read(device); });
    return known[device];
}

}  // namespace mustafar::cuda
