// Quantises rows and writes them as a block of integers in fragment order, for a thread block of 128 threads: four
// neighbouring ones for each row. The rule stands at mustafar_value_format.
#pragma once

#include "cuda/common/integers.cuh"
#include "cuda/compress/layout.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// A quarter of a row, as integers that 4 lanes share a scale for; zeros where nothing is kept.
template <int Channels, class Mask>
struct QuantizedPart {
    int8_t values[Channels];
    uint16_t scale;  // f16

    // number: of the row as it comes; kept: bit c for channel c; factors: what to divide it by, or null.
    __device__ __forceinline__ QuantizedPart(const float (&number)[Channels], Mask kept, const float* factors,
                                             int largest) {
        constexpr uint16_t largest_scale = 0x7bff, nan_scale = 0x7e00;
        float scaled[Channels], top = 0.0f;
        bool finite = true;
#pragma unroll
        for (int c = 0; c < Channels; ++c) {
            finite &= isfinite(number[c]);
            const float present = kept >> c & 1 ? number[c] : 0.0f;
            scaled[c] = factors == nullptr ? present : present / factors[c];
            top = fmaxf(top, fabsf(scaled[c]));
        }
        top = fmaxf(top, __shfl_xor_sync(full_warp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(full_warp, top, 2));
        const uint32_t group = 0xfu << (threadIdx.x & 28);
        finite = (__ballot_sync(full_warp, finite) & group) == group;
        const float limit = static_cast<float>(largest);
        scale = min(__half_as_ushort(__float2half_rn(top / limit)), largest_scale);
        const float divisor = __half2float(__ushort_as_half(scale));
#pragma unroll
        for (int c = 0; c < Channels; ++c) {
            const float q = divisor == 0.0f || !finite ? 0.0f : rintf(scaled[c] / divisor);
            values[c] = static_cast<int8_t>(fminf(fmaxf(q, -limit), limit));
        }
        if (!finite) scale = nan_scale;
    }
};

// Puts integers, rows of `stride` bytes in shared memory, in place in an image of the block. Between barriers.
template <int HeadDim, int Bits>
__device__ __forceinline__ void write_integers(uint8_t* image, bool keys, const int8_t* rows, int stride) {
    using Geometry = IntegerGeometry<HeadDim, Bits>;
    using Word = typename Geometry::Word;
    for (int i = threadIdx.x; i < Geometry::operands * 32; i += block_threads) {
        const int operand = i / 32, lane = i % 32;
        uint32_t word[Word::words] = {};
#pragma unroll
        for (int reg = 0; reg < 4; ++reg)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const auto at = Geometry::element(keys, operand, lane, reg, e);
                word[Word::words == 1 ? 0 : reg / 2] |= Word::pack(reg, e, rows[at.token * stride + at.channel]);
            }
#pragma unroll
        for (int w = 0; w < Word::words; ++w)
            *reinterpret_cast<uint32_t*>(image + Geometry::word_byte(operand, lane, w)) = word[w];
    }
}

// The reverse. place(token, channel, integer).
template <int HeadDim, int Bits, class Place>
__device__ __forceinline__ void read_integers(const uint8_t* block, bool keys, Place&& place) {
    using Geometry = IntegerGeometry<HeadDim, Bits>;
    using Word = typename Geometry::Word;
    for (int i = threadIdx.x; i < Geometry::operands * 32; i += block_threads) {
        const int operand = i / 32, lane = i % 32;
        uint32_t word[Word::words];
#pragma unroll
        for (int w = 0; w < Word::words; ++w)
            word[w] = *reinterpret_cast<const uint32_t*>(block + Geometry::word_byte(operand, lane, w));
#pragma unroll
        for (int reg = 0; reg < 4; ++reg)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const auto at = Geometry::element(keys, operand, lane, reg, e);
                place(at.token, at.channel, Word::unpack(word[Word::words == 1 ? 0 : reg / 2], reg, e));
            }
    }
}

}  // namespace mustafar::cuda
