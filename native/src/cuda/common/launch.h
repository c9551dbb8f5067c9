// Host side of a launch: the device a call runs on, and errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "core/error.h"
#include "cuda/common/architecture.h"

namespace mustafar::cuda {

constexpr int max_devices = 64;

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a launch error would otherwise be reported again by the next call
    const bool memory = status == cudaErrorMemoryAllocation;
    const bool missing = status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
                         status == cudaErrorInvalidDevice || status == cudaErrorNoKernelImageForDevice;
    fail(memory    ? MUSTAFAR_STATUS_OUT_OF_MEMORY
         : missing ? MUSTAFAR_STATUS_UNSUPPORTED
                   : MUSTAFAR_STATUS_DEVICE_ERROR,
         "%s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

struct DeviceProperties {
    int multiprocessors;
    int compute_capability;                // 90 for 9.0: what the device and the kernels compiled for it both have
    int shared_memory_per_block;           // bytes, opted in
    int shared_memory_per_multiprocessor;  // bytes
    int clusters[cluster_sizes];           // of 1, 2, 4, ... multiprocessors that run at the same time; 0: none
};

// Of the device, which is current; read once.
const DeviceProperties& device_properties(int device);

// Makes a call's device current for its duration.
class DeviceScope {
public:
    explicit DeviceScope(const mustafar_context& context) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (previous_ != context.device_index) check(cudaSetDevice(context.device_index), "cudaSetDevice");
        current_ = context.device_index;
        stream = static_cast<cudaStream_t>(context.stream);
    }
    ~DeviceScope() {
        if (previous_ != current_) cudaSetDevice(previous_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

    const DeviceProperties& properties() const { return device_properties(current_); }
    int device() const { return current_; }

    cudaStream_t stream;

private:
    int previous_ = 0, current_ = 0;
};

struct LaunchShape {
    int64_t blocks;
    int threads;
    size_t shared_bytes = 0;
    // The kernel waits for the grid before it by itself, so that its start overlaps that grid's end.
    bool overlapping = false;
    int cluster = 1;  // consecutive thread blocks that form one
};

// Does something about a kernel once for each device; `done` (one per kernel and purpose) remembers.
template <class Action>
void once_per_device(const DeviceScope& scope, std::atomic<uint64_t>& done, Action&& action) {
    const uint64_t bit = uint64_t{1} << scope.device();
    if ((done.load(std::memory_order_relaxed) & bit) != 0) return;
    action();
    done.fetch_or(bit, std::memory_order_relaxed);
}

// Raises a kernel's limit of dynamic shared memory.
template <class... Parameters>
void allow_shared_memory(const DeviceScope& scope, void (*kernel)(Parameters...), std::atomic<uint64_t>& allowed,
                         int static_bytes) {
    once_per_device(scope, allowed, [&] {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   scope.properties().shared_memory_per_block - static_bytes),
              "shared memory of a kernel");
    });
}

// Lets a kernel have clusters of 16 thread blocks.
template <class... Parameters>
void allow_large_clusters(const DeviceScope& scope, void (*kernel)(Parameters...), std::atomic<uint64_t>& allowed) {
    once_per_device(scope, allowed, [&] {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "clusters of a kernel");
    });
}

template <class... Parameters, class... Arguments>
void launch(const DeviceScope& scope, const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
            Arguments&&... arguments) {
    if (shape.blocks == 0) return;
    if (shape.blocks > 0x7fffffff)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: expected at most 2^31 - 1 thread blocks, got %lld", name,
             static_cast<long long>(shape.blocks));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = scope.stream;
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (shape.overlapping && scope.properties().compute_capability >= 90) {
        cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
        overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        overlap.val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 1) {
        cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
        cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace mustafar::cuda
