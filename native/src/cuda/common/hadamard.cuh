// The rotation of keys, with the sums of core/hadamard.h. Head_dims that can't be rotated are left as they are.
#pragma once

#include "core/hadamard.h"
#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

// Of a row in four neighbouring lanes, quarter after quarter; t: the lane's.
template <int Channels>
__device__ __forceinline__ void rotate_quarters(float (&number)[Channels], int t) {
    constexpr float factor = hadamard_factor(4 * Channels);
    if constexpr (factor != 0.0f) {
#pragma unroll
        for (int distance = 1; distance < Channels; distance *= 2)
#pragma unroll
            for (int i = 0; i < Channels; ++i) {
                if (i & distance) continue;
                const float a = number[i], b = number[i + distance];
                number[i] = a + b;
                number[i + distance] = a - b;
            }
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2)
#pragma unroll
            for (int i = 0; i < Channels; ++i) {
                const float other = __shfl_xor_sync(full_warp, number[i], lanes);
                number[i] = t & lanes ? other - number[i] : number[i] + other;
            }
#pragma unroll
        for (int i = 0; i < Channels; ++i) number[i] *= factor;
    }
}

// Of rows in shared memory, `stride` apart, for a thread block. Between barriers.
__device__ __forceinline__ void rotate_rows(float* rows, int count, int stride, int head_dim) {
    const int pairs = head_dim / 2;
    for (int distance = 1; distance < head_dim; distance *= 2) {
        for (int i = threadIdx.x; i < count * pairs; i += blockDim.x) {
            const int pair = i % pairs;
            float* const first = rows + i / pairs * stride + pair / distance * 2 * distance + pair % distance;
            const float a = first[0], b = first[distance];
            first[0] = a + b;
            first[distance] = a - b;
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < count * head_dim; i += blockDim.x)
        rows[i / head_dim * stride + i % head_dim] *= hadamard_factor(head_dim);
    __syncthreads();
}

}  // namespace mustafar::cuda
