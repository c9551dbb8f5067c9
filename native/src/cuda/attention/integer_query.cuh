// Query rows for blocks of integers: times the channel scales of the keys, as f16 with a power of two for each row.
#pragma once

#include "cuda/attention/params.h"
#include "cuda/attention/query.cuh"
#include "cuda/attention/softmax.cuh"
#include "cuda/common/hadamard.cuh"

namespace mustafar::cuda {

// A lane's channel scales, in the order in which the decoder D has its part of a row.
template <class D>
struct ChannelScales {
    static constexpr int words = D::part_words;
    float of[2 * words];

    // factors: of a row's channels, or null.
    __device__ __forceinline__ void load(const float* factors, int t, bool aligned) {
        if (factors == nullptr) {
#pragma unroll
            for (int i = 0; i < 2 * words; ++i) of[i] = 1.0f;
        } else if (aligned) {
#pragma unroll
            for (int i = 0; i < words / 2; ++i) {
                const float4 f = __ldg(reinterpret_cast<const float4*>(factors + D::part_channel(t, 2 * i)));
                of[4 * i] = f.x, of[4 * i + 1] = f.y, of[4 * i + 2] = f.z, of[4 * i + 3] = f.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 2 * words; ++i) of[i] = __ldg(factors + D::part_channel(t, i / 2) + i % 2);
        }
    }
};

// A lane's part of row g as f16, times its scales, rotated if the keys are, and times 2^-exponent, which is returned: the row's largest
// number is below 2 then. The row lies in the four lanes of a group, of which this one is t.
template <class T, class D>
__device__ __forceinline__ int scale_query(uint32_t (&words)[D::part_words], const ChannelScales<D>& scales,
                                           bool rotated, int t) {
    constexpr int count = D::part_words;
    float number[2 * count];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const float2 pair = unpack<T>(words[i]);
        number[2 * i] = pair.x * scales.of[2 * i], number[2 * i + 1] = pair.y * scales.of[2 * i + 1];
    }
    if (rotated) rotate_quarters(number, t);
#pragma unroll
    for (int i = 0; i < 2 * count; ++i) largest = fmaxf(largest, fabsf(number[i]));
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 2));
    // Of subnormal numbers, zero and infinity the exponent field is at an end; the factor stays a normal number.
    const int field = min(max(static_cast<int>(__float_as_uint(largest) >> 23), 1), 253);
    const float factor = __uint_as_float(static_cast<uint32_t>(254 - field) << 23);
#pragma unroll
    for (int i = 0; i < count; ++i) words[i] = pack<__half>(number[2 * i] * factor, number[2 * i + 1] * factor);
    return field - 127;
}

// What decoders D of integers alone have in common, where a decoder of mixed blocks has its own.
template <class D>
struct IntegerSides {
    static constexpr bool releases_keys_early = false;  // before values are waited for: takes runs of one block
    static __device__ __forceinline__ constexpr bool integer_values() { return true; }

    // A lane's part of a query row for blocks: returns its exponent.
    template <class T, int Words>
    __device__ __forceinline__ int scale_block_query(const AttentionParams& p, uint32_t (&words)[Words],
                                                     const ChannelScales<D>& scales) const {
        return scale_query<T, D>(words, scales, p.keys.rotated(), static_cast<const D*>(this)->t);
    }
    // Calls set(step, registers) for the operands of a scaled part.
    template <int Words, class Set>
    __device__ __forceinline__ void block_query_fragments(const uint32_t (&words)[Words], Set&& set) const {
#pragma unroll
        for (int i = 0; i < D::steps; ++i) set(i, D::query_fragment(words, i, static_cast<const D*>(this)->t));
    }
};

}  // namespace mustafar::cuda
