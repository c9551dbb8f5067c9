// Quantises rows and writes them as a block of integers in fragment order, for a thread block of 128 threads: four
// neighbouring ones for each row. The rule stands at mustafar_value_format.
#pragma once

#include "cuda/common/hadamard.cuh"
#include "cuda/common/integers.cuh"
#include "cuda/compress/layout.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// x / by, whose inverse is rounded to the nearest: the remainder corrects the last digit.
template <class T>
__device__ __forceinline__ float divided(float x, float by, float inverse) {
    const float near = x * inverse, exact = fmaf(fmaf(-near, by, x), inverse, near);
    // Numbers of f16 stay finite.
    return std::is_same_v<T, __half> || !isinf(near) ? exact : near;
}

// What keys are divided by, and its inverse, for all channels: by quarters of a row, apart so that four lanes read different banks.
template <int HeadDim>
struct ChannelFactors {
    static constexpr int quarter = HeadDim / 4;
    float factor[4][quarter + 4], inverse[4][quarter + 4];

    // Ends without a barrier.
    __device__ __forceinline__ void load(const float* factors) {
        for (int c = threadIdx.x; c < HeadDim; c += block_threads) {
            factor[c / quarter][c % quarter] = factors[c];
            inverse[c / quarter][c % quarter] = 1.0f / factors[c];
        }
    }
};

// A quarter of a row, as integers that 4 lanes share a scale for; zeros where nothing is kept.
template <class T, int Channels, class Mask>
struct QuantizedPart {
    uint32_t word[Channels / 4];  // SignedBytes
    uint16_t scale;               // f16

    // number: of the row as it comes; kept: bit c for channel c. factors: or null; of quarter t. rotated: where all are kept.
    template <class Factors>
    __device__ __forceinline__ QuantizedPart(float (&number)[Channels], Mask kept, const Factors* factors, int t,
                                             int bits, bool rotated) {
        constexpr uint16_t largest_scale = 0x7bff, nan_scale = 0x7e00;
        float top = 0.0f;
        bool finite = true;
#pragma unroll
        for (int c = 0; c < Channels; ++c) {
            finite &= isfinite(number[c]);
            number[c] = kept >> c & 1 ? number[c] : 0.0f;
        }
        if (factors != nullptr) {
#pragma unroll
            for (int c = 0; c < Channels; c += 4) {
                const float4 by = *reinterpret_cast<const float4*>(factors->factor[t] + c);
                const float4 inverse = *reinterpret_cast<const float4*>(factors->inverse[t] + c);
                number[c] = divided<T>(number[c], by.x, inverse.x);
                number[c + 1] = divided<T>(number[c + 1], by.y, inverse.y);
                number[c + 2] = divided<T>(number[c + 2], by.z, inverse.z);
                number[c + 3] = divided<T>(number[c + 3], by.w, inverse.w);
            }
        }
        if (rotated) {
            rotate_quarters(number, t);
#pragma unroll
            for (int c = 0; c < Channels; ++c) finite &= isfinite(number[c]);
        }
#pragma unroll
        for (int c = 0; c < Channels; ++c) top = fmaxf(top, fabsf(number[c]));
        top = fmaxf(top, __shfl_xor_sync(full_warp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(full_warp, top, 2));
        const uint32_t group = 0xfu << (threadIdx.x & 28);
        finite = (__ballot_sync(full_warp, finite) & group) == group;
        const float limit = static_cast<float>((1 << (bits - 1)) - 1);
        scale = min(__half_as_ushort(__float2half_rn(top / limit)), largest_scale);
        const float divisor = __half2float(__ushort_as_half(scale)), inverse = 1.0f / divisor;
        const bool empty = divisor == 0.0f || !finite;
#pragma unroll
        for (int j = 0; j < Channels / 4; ++j) {
            constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the lowest digits
            uint32_t digits[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                digits[i] = __float_as_uint(
                    fminf(fmaxf(divided<T>(number[4 * j + i], divisor, inverse), -limit), limit) + shifter);
            const uint32_t low = permute(digits[0], digits[1], 0x0040), high = permute(digits[2], digits[3], 0x0040);
            word[j] = empty ? 0 : SignedByte{bits}.encode_four(permute(low, high, 0x5410));
        }
        if (!finite) scale = nan_scale;
    }
};

// Puts SignedBytes, rows of `stride` bytes in shared memory, in place in an image of the block. Between barriers.
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
