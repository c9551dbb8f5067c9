#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/dispatch.h"
#include "cuda/step/linear_tiles.cuh"
#include "cuda/step/linear_tiles.h"

namespace mustafar::cuda {
namespace {

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// The driver's function, or null where it has none.
EncodeTensorMap encode_tensor_map() {
    static const EncodeTensorMap function = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
        const cudaError_t status =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t status =
            cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        if (status != cudaSuccess) cudaGetLastError();
        return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(found)
                                                                              : nullptr;
    }();
    return function;
}

// A matrix [rows, width] that is copied in boxes of tile_chunk columns.
CUtensorMap tensor_map(const char* what, const mustafar_rows& matrix, int64_t rows, int64_t width, int32_t dtype,
                       int box_rows) {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(matrix.row_stride) * 2};
    const cuuint32_t box[2] = {tile_chunk, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
    CUtensorMap map;
    const CUresult status = encode_tensor_map()(
        &map, dtype == MUSTAFAR_DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
        matrix.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS)
        fail(MUSTAFAR_STATUS_DEVICE_ERROR, "%s: the driver refused to describe the matrix (CUresult %d)", what,
             static_cast<int>(status));
    return map;
}

bool can_be_copied(const mustafar_rows& matrix) {
    return reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && matrix.row_stride > 0 && matrix.row_stride % 8 == 0;
}

// How many thread blocks share a tile, by the nanoseconds that memory and the busiest multiprocessor need (H200). Where they do, all tiles
// are taken at once.
int cluster_for(const DeviceProperties& device, int64_t tiles, int64_t chunks, int input_rows) {
    constexpr double device_bytes = 4200, cluster_cost = 1500;
    const double multiprocessor_bytes = input_rows == 64 ? 45 : 50;
    const double tile_bytes = static_cast<double>(chunks * tile_weight_bytes);
    const auto turn = [&](int64_t busy, int cluster) {
        return std::max(static_cast<double>(busy) * tile_bytes / device_bytes,
                        tile_bytes / cluster / multiprocessor_bytes);
    };
    const int64_t turns = tiles / device.multiprocessors, rest = tiles % device.multiprocessors;
    double best_cost = static_cast<double>(turns) * turn(device.multiprocessors, 1) + (rest == 0 ? 0 : turn(rest, 1));
    int best = 1;
    for (int log_size = 1; 1 << log_size <= max_tile_cluster && tiles <= device.clusters[log_size]; ++log_size) {
        const double cost = turn(tiles, 1 << log_size) + cluster_cost;
        if (cost >= best_cost) continue;
        best_cost = cost;
        best = 1 << log_size;
    }
    return best;
}

template <class T, int InputRows, bool Gated>
void start(const DeviceScope& scope, const mustafar_linear& a) {
    // What the kernels around this one need of a multiprocessor's shared memory, to start before it ends and to end after it starts.
    constexpr int left_free = 16 << 10;
    LinearTilesParams p{};
    p.weight_map = tensor_map("weight", a.weight, int64_t{a.out_features} * (Gated ? 2 : 1), a.in_features, a.dtype,
                              tile_box_rows);
    p.input_map = tensor_map("input", a.input, a.rows, a.in_features, a.dtype, InputRows);
    p.linear.residual = a.residual;
    p.linear.output = a.output;
    p.linear.bias = a.bias;
    p.linear.out_features = a.out_features;
    p.rows = a.rows;
    p.tiles = static_cast<int32_t>(divide_up(a.out_features, Gated ? tile_box_rows : tile_rows));
    p.chunks = static_cast<int32_t>(divide_up(a.in_features, tile_chunk));
    // Even, so that a place in the ring always belongs to the same warps, which see every change of its barriers.
    p.stages = (scope.properties().shared_memory_per_block - left_free - tile_sum_bytes(InputRows)) /
               (tile_stage_bytes(InputRows) + 16) / 2 * 2;
    p.cluster = cluster_for(scope.properties(), p.tiles, p.chunks, InputRows);
    const int64_t at_once = p.cluster > 1 ? p.tiles : scope.properties().multiprocessors;
    static std::atomic<uint64_t> allowed{0};
    const auto kernel = linear_tiles<T, InputRows, Gated>;
    allow_shared_memory(scope, kernel, allowed, 0);
    launch(scope, "linear", kernel,
           LaunchShape{std::min<int64_t>(p.tiles, at_once) * p.cluster, tile_threads,
                       static_cast<size_t>(tile_shared_bytes(InputRows, p.stages)), true, p.cluster},
           p);
}

template <class T, bool Gated>
void start(const DeviceScope& scope, const mustafar_linear& a) {
    if (a.rows <= 8) return start<T, 8, Gated>(scope, a);
    if (a.rows <= 16) return start<T, 16, Gated>(scope, a);
    if (a.rows <= 32) return start<T, 32, Gated>(scope, a);
    start<T, 64, Gated>(scope, a);
}

template <class T>
void start(const DeviceScope& scope, const mustafar_linear& a) {
    a.activation == MUSTAFAR_ACTIVATION_SILU_MUL ? start<T, true>(scope, a) : start<T, false>(scope, a);
}

}  // namespace

bool serves_tiles(const DeviceProperties& device, const mustafar_linear& a) {
    return device.compute_capability == 90 && a.dtype != MUSTAFAR_DTYPE_F32 && a.rows >= 2 && a.norm == nullptr &&
           can_be_copied(a.weight) && can_be_copied(a.input) && encode_tensor_map() != nullptr;
}

void linear_on_tiles(const DeviceScope& scope, const mustafar_linear& a) {
    a.dtype == MUSTAFAR_DTYPE_BF16 ? start<__nv_bfloat16>(scope, a) : start<__half>(scope, a);
}

}  // namespace mustafar::cuda
