// Channel scales of keys from a sequence's first tokens; mustafar_key_factors has the rule. Work of a thread block.
#pragma once

#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// Of one (sequence or slot, head); null stays null.
template <int HeadDim, class F>
__device__ __forceinline__ F* factors_of(F* factors, int sequence, int heads, int head) {
    return factors == nullptr ? nullptr : factors + (static_cast<int64_t>(sequence) * heads + head) * HeadDim;
}

// row(t): token t's row of HeadDim channels. largest: shared memory. Ends with a barrier, after which all threads of the block
// see the factors.
template <class T, int HeadDim, class Row>
__device__ __forceinline__ void compute_key_factors(int tokens, Row&& row, float (&largest)[HeadDim], float* factors) {
    const float infinity = __int_as_float(0x7f800000);
    for (int c = threadIdx.x; c < HeadDim; c += blockDim.x) largest[c] = 0.0f;
    __syncthreads();
    // As many groups of threads as there are share the tokens.
    const int groups = max(1, static_cast<int>(blockDim.x) / HeadDim), group = threadIdx.x / HeadDim;
    for (int c = threadIdx.x % HeadDim; c < HeadDim && group < groups; c += blockDim.x) {
        float top = 0.0f;
#pragma unroll 8
        for (int t = group; t < tokens; t += groups) {
            const float magnitude = fabsf(as_float(row(t)[c]));
            top = fmaxf(top, magnitude == magnitude ? magnitude : infinity);
        }
        // Magnitudes are ordered as their bits.
        atomicMax(reinterpret_cast<int*>(&largest[c]), __float_as_int(top));
    }
    __syncthreads();
    double sum = 0.0;
    int count = 0;
    for (int c = 0; c < HeadDim; ++c) {
        if (!(largest[c] > 0.0f) || largest[c] == infinity) continue;
        sum += static_cast<double>(largest[c]);
        ++count;
    }
    const double mean = count > 0 ? sum / count : 1.0;
    for (int c = threadIdx.x; c < HeadDim; c += blockDim.x) {
        const bool counts = largest[c] > 0.0f && largest[c] != infinity;
        const double factor = counts ? fmin(fmax(static_cast<double>(largest[c]) / mean, 0x1p-10), 0x1p10) : 1.0;
        factors[c] = __half2float(__float2half_rn(static_cast<float>(factor)));
    }
    __syncthreads();
}

}  // namespace mustafar::cuda
