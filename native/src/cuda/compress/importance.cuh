// The importance of a head's channels, by which magnitudes are multiplied to rank them.
#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// |value * importance| as the integer by which it is ranked. Every NaN becomes 0x7fffffff.
__device__ __forceinline__ uint32_t score(float value, float importance) {
    return __float_as_uint(__fmul_rn(fabsf(value), fabsf(importance)));
}

// In shared memory, by quarters of a row, apart so that four lanes read different banks.
template <int HeadDim>
struct Importance {
    static constexpr int quarter = HeadDim / 4, stride = quarter + 4;
    alignas(16) float channel[4 * stride];

    // Ends without a barrier.
    __device__ __forceinline__ void load(const float* importance) {
        for (int c = threadIdx.x; c < HeadDim; c += blockDim.x)
            channel[c / quarter * stride + c % quarter] = importance[c];
    }
    // Of a channel and those after it in its quarter.
    __device__ __forceinline__ const float* from(int c) const { return channel + c / quarter * stride + c % quarter; }
};

}  // namespace mustafar::cuda
