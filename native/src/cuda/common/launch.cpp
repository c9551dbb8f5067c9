#include "cuda/common/launch.h"

#include <algorithm>
#include <mutex>

#include "cuda/common/architecture.h"

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
    return {attribute(cudaDevAttrMultiProcessorCount), std::min(capability, kernel_architecture()),
            attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
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
