// Query rows for blocks of integers: times the channel scales of the keys, as f16 with a power of two for each row.
#pragma once

#include "cuda/attention/query.cuh"
#include "cuda/attention/softmax.cuh"

namespace mustafar::cuda {

// Lane t's part of a row as f16, times 2^-exponent, which is returned: the row's largest number is below 2 then. The row lies in
// the four lanes of a group, as the decoder D has it. factors: of the row's channels, or null.
template <class T, class D, int Words>
__device__ __forceinline__ int scale_query(uint32_t (&words)[Words], const float* factors, int t, bool aligned) {
    float number[2 * Words];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < Words; ++i) {
        const float2 pair = unpack<T>(words[i]);
        number[2 * i] = pair.x, number[2 * i + 1] = pair.y;
    }
    if (factors != nullptr && aligned) {
#pragma unroll
        for (int i = 0; i < Words / 2; ++i) {
            const float4 f = __ldg(reinterpret_cast<const float4*>(factors + D::part_channel(t, 2 * i)));
            number[4 * i] *= f.x, number[4 * i + 1] *= f.y, number[4 * i + 2] *= f.z, number[4 * i + 3] *= f.w;
        }
    } else if (factors != nullptr) {
#pragma unroll
        for (int i = 0; i < 2 * Words; ++i) number[i] *= __ldg(factors + D::part_channel(t, i / 2) + i % 2);
    }
#pragma unroll
    for (int i = 0; i < 2 * Words; ++i) largest = fmaxf(largest, fabsf(number[i]));
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 2));
    // Of subnormal numbers, zero and infinity the exponent field is at an end; the factor stays a normal number.
    const int field = min(max(static_cast<int>(__float_as_uint(largest) >> 23), 1), 253);
    const float factor = __uint_as_float(static_cast<uint32_t>(254 - field) << 23);
#pragma unroll
    for (int i = 0; i < Words; ++i) words[i] = pack<__half>(number[2 * i] * factor, number[2 * i + 1] * factor);
    return field - 127;
}

}  // namespace mustafar::cuda
