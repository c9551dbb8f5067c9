// Elements of any dtype as floats, one or 16 bytes at a time; sums over warps and thread blocks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/format.h"
#include "mustafar/mustafar.h"

namespace mustafar::cuda {

constexpr unsigned all_lanes = 0xffffffffu;

__device__ __forceinline__ float as_float(float value) {
    return value;
}
__device__ __forceinline__ float as_float(__half value) {
    return __half2float(value);
}
__device__ __forceinline__ float as_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}

template <class T>
__device__ __forceinline__ T rounded_to(float value) {
    if constexpr (sizeof(T) == 4)
        return value;
    else
        return static_cast<T>(value);
}

// What one thread reads at once.
template <class T>
struct alignas(16) Piece {
    static constexpr int count = 16 / static_cast<int>(sizeof(T));
    T values[count];
};

// A piece of a row; elements from `valid` on are zeros. `aligned`: the row and its length are made of whole pieces.
template <class T>
__device__ __forceinline__ Piece<T> load_piece(const T* source, int valid, bool aligned) {
    Piece<T> piece;
    if (aligned) {
        *reinterpret_cast<uint4*>(&piece) =
            valid > 0 ? *reinterpret_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
    } else {
#pragma unroll
        for (int i = 0; i < Piece<T>::count; ++i) piece.values[i] = i < valid ? source[i] : rounded_to<T>(0.0f);
    }
    return piece;
}

template <class T>
__device__ __forceinline__ void store_piece(T* target, const Piece<T>& piece, int valid, bool aligned) {
    if (aligned) {
        if (valid > 0) *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(&piece);
    } else {
#pragma unroll
        for (int i = 0; i < Piece<T>::count; ++i)
            if (i < valid) target[i] = piece.values[i];
    }
}

struct Rows {
    void* data;
    int64_t stride;  // elements

    Rows() = default;
    Rows(const mustafar_rows& rows) : data(rows.data), stride(rows.row_stride) {}
    template <class T>
    __device__ __forceinline__ T* row(int64_t index) const {
        return static_cast<T*>(data) + index * stride;
    }
};

// Whether all rows of `width` elements consist of aligned 16-byte pieces.
inline bool has_pieces(const mustafar_rows& rows, int64_t width, int32_t dtype) {
    const int64_t element = element_bytes(dtype);
    return rows.data == nullptr || (reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
                                    rows.row_stride * element % 16 == 0 && width * element % 16 == 0);
}
inline bool is_piece_aligned(const void* data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(all_lanes, value, offset);
    return value;
}

// For all threads; `partial` is one float for each warp of the block and free again after the next barrier.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    const unsigned lane = threadIdx.x % 32;
    return warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0.0f);
}

__device__ __forceinline__ float silu(float x) {
    return __fdividef(x, 1.0f + __expf(-x));
}

}  // namespace mustafar::cuda
