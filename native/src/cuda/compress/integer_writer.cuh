// Quantises rows and writes them as a block of integers in fragment order, for a thread block of 128 threads: four
// neighbouring ones for each row. The rule stands at mustafar_value_format.
#pragma once

#include "cuda/common/hadamard.cuh"
#include "cuda/common/integers.cuh"
#include "cuda/compress/layout.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// The inverse of a number of up to 11 bits, in two parts. Quotients are rounded to nearest: with so few bits none lies so close to the
// middle between two f32 numbers that what the parts lack decides.
struct Inverse {
    float nearest, rest;

    __device__ __forceinline__ explicit Inverse(float x) {
        const float near = reciprocal(x);
        nearest = fmaf(fmaf(-near, x, 1.0f), near, near);
        rest = fmaf(-nearest, x, 1.0f) * nearest;
    }
    __device__ __forceinline__ Inverse(float nearest_one, float its_rest) : nearest(nearest_one), rest(its_rest) {}

    // x divided by that number. Neither may be so large or small that this overflows or loses digits.
    __device__ __forceinline__ float of(float x) const { return fmaf(x, nearest, x * rest); }
};

// The inverses of what keys are divided by, for all channels: by quarters of a row, apart so that four lanes read different banks.
template <int HeadDim>
struct ChannelFactors {
    static constexpr int quarter = HeadDim / 4;
    float nearest[4][quarter + 4], rest[4][quarter + 4];

    // Ends without a barrier.
    __device__ __forceinline__ void load(const float* factors) {
#pragma unroll
        for (int first = 0; first < HeadDim; first += block_threads) {
            const int c = first + static_cast<int>(threadIdx.x);
            if (HeadDim - first < block_threads && c >= HeadDim) break;
            const Inverse inverse(factors[c]);
            nearest[c / quarter][c % quarter] = inverse.nearest;
            rest[c / quarter][c % quarter] = inverse.rest;
        }
    }
};

// A quarter of a row, as integers that 4 lanes share a scale for. Those of channels that are not kept mean nothing.
template <int Channels, class Mask>
struct QuantizedPart {
    uint32_t word[Channels / 4];  // SignedBytes
    uint16_t scale;               // f16

    // number: of the row as it comes. largest: magnitude, NaN if there is one. kept: bit c for channel c, or all bits if the largest of
    // the row is kept. scaled: by factors, of quarter t. rotated: where all are kept. byte: what an integer becomes.
    template <class Factors>
    __device__ __forceinline__ QuantizedPart(float (&number)[Channels], float largest, Mask kept, bool scaled,
                                             const Factors& factors, int t, SignedByte byte, bool rotated) {
        constexpr uint16_t largest_scale = 0x7bff, nan_scale = 0x7e00;
        constexpr float huge = 0x1p100f;
        bool finite = isfinite(largest);
        if (!rotated && __any_sync(full_warp, largest > huge)) {
            // They are the largest integers in any case, but could not be divided.
#pragma unroll
            for (int c = 0; c < Channels; ++c) number[c] = fminf(fmaxf(number[c], -huge), huge);
        }
        if (scaled) {
#pragma unroll
            for (int c = 0; c < Channels; c += 4) {
                const float4 nearest = *reinterpret_cast<const float4*>(factors.nearest[t] + c);
                const float4 rest = *reinterpret_cast<const float4*>(factors.rest[t] + c);
                number[c] = Inverse(nearest.x, rest.x).of(number[c]);
                number[c + 1] = Inverse(nearest.y, rest.y).of(number[c + 1]);
                number[c + 2] = Inverse(nearest.z, rest.z).of(number[c + 2]);
                number[c + 3] = Inverse(nearest.w, rest.w).of(number[c + 3]);
            }
        }
        if (rotated) {
            rotate_quarters(number, t);
#pragma unroll
            for (int c = 0; c < Channels; ++c) finite &= isfinite(number[c]);
        }
        float top = 0.0f;
        if (!scaled && !rotated && __all_sync(full_warp, kept == ~Mask{0})) {
            top = largest;
        } else {
#pragma unroll
            for (int c = 0; c < Channels; ++c)
                if (kept >> c & 1) top = fmaxf(top, fabsf(number[c]));
        }
        top = fmaxf(top, __shfl_xor_sync(full_warp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(full_warp, top, 2));
        const uint32_t group = 0xfu << (threadIdx.x & 28);
        finite = (__ballot_sync(full_warp, finite) & group) == group;
        const float limit = static_cast<float>((1 << (byte.bits - 1)) - 1);
        scale = min(__half_as_ushort(__float2half_rn(Inverse(limit).of(top))), largest_scale);
        float divisor = __half2float(__ushort_as_half(scale));
        if (!__all_sync(full_warp, finite && top < (limit + 0.5f) * divisor)) {
            // Rows that are not finite, or for whose scale f16 has no number that is near enough.
            const float end = finite ? limit * divisor : 0.0f;
#pragma unroll
            for (int c = 0; c < Channels; ++c) number[c] = fminf(fmaxf(number[c], -end), end);
            if (end == 0.0f) divisor = 1.0f;
            if (!finite) scale = nan_scale;
        }
        // The smallest numbers of f16 are such integers, with a sign: rounding to f16 makes them.
        constexpr float units = 0x1p24f;
        const Inverse inverse(divisor * units);
        const uint32_t signs = 0x01010101u << byte.sign_bit;
        const uint32_t up = 0x3c003c00u + byte.magnitude_bit * 0x04000400u;  // a power of two, twice
#pragma unroll
        for (int j = 0; j < Channels / 4; ++j) {
            uint32_t pair[2];
#pragma unroll
            for (int h = 0; h < 2; ++h)
                pair[h] = placed(
                    __floats2half2_rn(inverse.of(number[4 * j + 2 * h]), inverse.of(number[4 * j + 2 * h + 1])), up);
            word[j] = permute(pair[0], pair[1], 0x6420) | (signs_of_halves(pair[0], pair[1]) & signs);
        }
    }

private:
    // Magnitudes moved to their bits; of no negative zero.
    static __device__ __forceinline__ uint32_t placed(__half2 pair, uint32_t up) {
        pair = __hfma2(pair, *reinterpret_cast<const __half2*>(&up), __half2());
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
};

// Puts integers, each a SignedByte{Bits}, rows of `stride` bytes in shared memory, in place in an image of the block. Between barriers.
template <int HeadDim, int Bits>
__device__ __forceinline__ void write_integers(uint8_t* image, bool keys, const uint8_t* rows, int stride) {
    using Geometry = IntegerGeometry<HeadDim, Bits>;
    const auto four = [&](int token, int channel) {
        return *reinterpret_cast<const uint32_t*>(rows + token * stride + channel);
    };
    const auto store = [&](int operand, int lane, int w, uint32_t word) {
        *reinterpret_cast<uint32_t*>(image + Geometry::word_byte(operand, lane, w)) = word;
    };
    // Nibbles in the order of IntegerWord's magnitudes; their signs belong two nibbles further up.
    const auto with_signs = [](uint32_t nibbles) {
        const uint32_t signs = nibbles & 0x88888888u;
        return (nibbles & 0x77777777u) | __funnelshift_l(signs, signs, 8);
    };
    constexpr uint32_t signs = 0x80808080u;
    if (keys) {
        for (int i = threadIdx.x; i < Geometry::operands * 32; i += block_threads) {
            const int operand = i / 32, lane = i % 32;
            const auto at = Geometry::element(true, operand, lane, 0, 0);
            const uint32_t a = four(at.token, at.channel), b = four(at.token + 8, at.channel);
            if constexpr (Bits == 4) {
                store(operand, lane, 0, with_signs(permute(b | a << 4, 0, 0x2130)));
            } else {
                const uint32_t low = (a & ~signs) | (b & signs), high = (b & ~signs) | (a & signs);
                store(operand, lane, 0, permute(low, high, 0x5140));
                store(operand, lane, 1, permute(low, high, 0x7362));
            }
        }
        return;
    }
    // Two operands, of four channels in a row, at a time.
    for (int i = threadIdx.x; i < Geometry::operands * 16; i += block_threads) {
        const int lane = i % 32, operand = i / 64 * 4 + i / 32 % 2;
        const auto at = Geometry::element(false, operand, lane, 0, 0);
        uint32_t row[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) row[j] = four(at.token + (j & 1) + 8 * (j >> 1), at.channel);
        if constexpr (Bits == 4) {
#pragma unroll
            for (int j = 0; j < 4; ++j) row[j] = row[j] >> 8 | row[j] << 4;  // pairs in the bytes 0 and 2
            const uint32_t even = permute(row[0], row[3], 0x6240), odd = permute(row[1], row[2], 0x6240);
            store(operand, lane, 0, with_signs(permute(even, odd, 0x5410)));
            store(operand + 2, lane, 0, with_signs(permute(even, odd, 0x7632)));
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) row[j] = (row[j] & ~signs) | (permute(row[j], 0, 0x2301) & signs);
#pragma unroll
            for (int w = 0; w < 2; ++w) {
                store(operand, lane, w, permute(row[2 * w], row[2 * w + 1], 0x5410));
                store(operand + 2, lane, w, permute(row[2 * w], row[2 * w + 1], 0x7632));
            }
        }
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
