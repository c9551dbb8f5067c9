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

bool can_be_copied(const mustafar_rows& matrix, int64_t width) {
    constexpr int64_t most = int64_t{1} << 39;  // elements of two bytes; what a map may describe
    return reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && matrix.row_stride % 8 == 0 &&
           matrix.row_stride >= width && matrix.row_stride < most;
}

// How the weight is divided.
struct Tiling {
    int box_rows, cluster;
    int64_t tiles;
};

// By the nanoseconds that memory, the second-level cache and the busiest multiprocessor need, and that a chunk needs at least (H200).
// Clusters take all tiles at once.
Tiling tiling_for(const DeviceProperties& device, const mustafar_linear& a, int input_rows) {
    constexpr double memory_bytes = 4200, cache_bytes = 5400, multiprocessor_bytes = 41, chunk_cost = 260;
    constexpr double turn_cost = 300, cluster_cost = 1500;
    const int boxes = a.activation == MUSTAFAR_ACTIVATION_SILU_MUL ? 1 : 2;  // of different outputs
    Tiling best{};
    double best_cost = 0;
    for (int cluster = 1, log_size = 0; cluster <= max_tile_cluster; cluster *= 2, ++log_size)
        for (int box_rows = 8; box_rows <= max_box_rows; box_rows += 8) {
            const int64_t tiles = divide_up(a.out_features, boxes * box_rows);
            const int64_t at_once = device.clusters[log_size];
            if (cluster > 1 && (tiles > at_once || boxes * box_rows % (4 * cluster) != 0)) continue;
            const double row_bytes = 2.0 * a.in_features;
            const double chunks = static_cast<double>(divide_up(divide_up(a.in_features, tile_chunk), cluster));
            const auto turn = [&](int64_t busy) {
                const double weight = static_cast<double>(busy) * 2 * box_rows * row_bytes,
                             all = static_cast<double>(busy) * (2 * box_rows + input_rows) * row_bytes;
                return turn_cost + std::max({weight / memory_bytes, all / cache_bytes, chunks * chunk_cost,
                                             all / static_cast<double>(busy * cluster) / multiprocessor_bytes});
            };
            const double cost = static_cast<double>(tiles / at_once) * turn(at_once) +
                                (tiles % at_once == 0 ? 0 : turn(tiles % at_once)) + (cluster > 1 ? cluster_cost : 0);
            if (best.tiles != 0 && cost >= best_cost) continue;
            best_cost = cost;
            best = {box_rows, cluster, tiles};
        }
    return best;
}

template <class T, int InputRows, bool Gated>
void start(const DeviceScope& scope, const mustafar_linear& a) {
    // What the kernels around this one need of a multiprocessor's shared memory, to start before it ends and to end after it starts.
    constexpr int left_free = 16 << 10, barrier_bytes = 16, most_stages = 32;
    const Tiling tiling = tiling_for(scope.properties(), a, InputRows);
    LinearTilesParams p{};
    p.weight_map = tensor_map("weight", a.weight, int64_t{a.out_features} * (Gated ? 2 : 1), a.in_features, a.dtype,
                              tiling.box_rows);
    p.input_map = tensor_map("input", a.input, a.rows, a.in_features, a.dtype, InputRows);
    p.linear.residual = a.residual;
    p.linear.output = a.output;
    p.linear.bias = a.bias;
    p.linear.out_features = a.out_features;
    p.rows = a.rows;
    p.box_rows = tiling.box_rows;
    p.tiles = static_cast<int32_t>(tiling.tiles);
    p.chunks = static_cast<int32_t>(divide_up(a.in_features, tile_chunk));
    p.cluster = tiling.cluster;
    const int stage_bytes = tile_stage_bytes(p.box_rows, InputRows) + barrier_bytes;
    const int room = scope.properties().shared_memory_per_block - left_free - tile_sum_bytes(InputRows);
    // Even, so that a place in the ring always belongs to the same warps, which see every change of its barriers.
    p.stages = std::min(most_stages, room / stage_bytes / 2 * 2);
    const int64_t at_once = p.cluster > 1 ? tiling.tiles : scope.properties().multiprocessors;
    static std::atomic<uint64_t> allowed{0};
    const auto kernel = linear_tiles<T, InputRows, Gated>;
    allow_shared_memory(scope, kernel, allowed, 0);
    launch(scope, "linear", kernel,
           LaunchShape{std::min(tiling.tiles, at_once) * p.cluster, tile_threads,
                       static_cast<size_t>(p.stages * stage_bytes + tile_sum_bytes(InputRows)), true, p.cluster},
           p);
}

template <class T, bool Gated>
void start(const DeviceScope& scope, const mustafar_linear& a) {
    if (a.rows <= 8) return start<T, 8, Gated>(scope, a);
    if (a.rows <= 16) return start<T, 16, Gated>(scope, a);
    static_assert(MUSTAFAR_LINEAR_MAX_ROWS == 32);
    start<T, 32, Gated>(scope, a);
}

template <class T>
void start(const DeviceScope& scope, const mustafar_linear& a) {
    a.activation == MUSTAFAR_ACTIVATION_SILU_MUL ? start<T, true>(scope, a) : start<T, false>(scope, a);
}

}  // namespace

bool serves_tiles(const DeviceProperties& device, const mustafar_linear& a) {
    return device.compute_capability == 90 && a.dtype != MUSTAFAR_DTYPE_F32 && a.rows >= 2 && a.norm == nullptr &&
           can_be_copied(a.weight, a.in_features) && can_be_copied(a.input, a.in_features) &&
           encode_tensor_map() != nullptr;
}

void linear_on_tiles(const DeviceScope& scope, const mustafar_linear& a) {
    a.dtype == MUSTAFAR_DTYPE_BF16 ? start<__nv_bfloat16>(scope, a) : start<__half>(scope, a);
}

}  // namespace mustafar::cuda
