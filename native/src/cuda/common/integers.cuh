// Blocks of integers in fragment order, with all channels kept or two of each four: docs/format.md has the layout.
//
// A word of 8 4-bit values, or two words of 4 8-bit ones, make the operand A of one matrix product, dense or sparse, for one
// lane: registers 0 ... 3 of two f16 each. Signs lie apart from magnitudes, so that an AND alone makes an f16 of them: the magnitude is the low
// end of a mantissa without exponent, which tensor cores take exactly.
#pragma once

#include <cstdint>

#include "core/format.h"
#include "cuda/common/balanced.cuh"
#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

// An integer as kernels that write blocks hold it, in a byte: its sign, and its magnitude from a bit upwards. Zero has no sign.
struct SignedByte {
    int bits;
    int sign_bit = bits - 1, magnitude_bit = 0;

    constexpr uint32_t encode(int value) const {
        return value < 0 ? static_cast<uint32_t>(-value) << magnitude_bit | 1u << sign_bit
                         : static_cast<uint32_t>(value) << magnitude_bit;
    }
    constexpr int decode(uint32_t byte) const {
        const int magnitude = static_cast<int>(byte >> magnitude_bit) & ((1 << (bits - 1)) - 1);
        return byte >> sign_bit & 1 ? -magnitude : magnitude;
    }
    // Four SignedByte{bits}, with their signs and magnitudes moved to this one's bits.
    constexpr uint32_t moved(uint32_t four) const {
        const uint32_t signs = 0x01010101u << (bits - 1), magnitudes = signs - 0x01010101u;
        return (four & magnitudes) << magnitude_bit | (four & signs) << (sign_bit - (bits - 1));
    }
};

template <int Bits>
struct IntegerWord {
    static_assert(Bits == 4 || Bits == 8);
    static constexpr int words = Bits / 4;  // of an operand
    static constexpr int largest = (1 << (Bits - 1)) - 1;
    static constexpr float unit = Bits == 4 ? 0x1p-20f : 0x1p-24f;  // of the f16 that a magnitude of 1 becomes

    // Where half e of register `reg` is in its word (number reg / 2 of two where there are two).
    static constexpr int sign_bit(int reg, int e) { return (Bits == 4 ? 15 - 4 * reg : 15 - 8 * (reg & 1)) + 16 * e; }
    static constexpr int magnitude_bit(int reg, int e) {
        return Bits == 4 ? (sign_bit(reg, e) - 11) & 31 : 8 * (reg & 1) + 16 * e;
    }

    // byte: a SignedByte{Bits}.
    static __device__ __forceinline__ uint32_t pack(int reg, int e, uint32_t byte) {
        return (byte & largest) << magnitude_bit(reg, e) | byte >> (Bits - 1) << sign_bit(reg, e);
    }
    static __device__ __forceinline__ int unpack(uint32_t word, int reg, int e) {
        const int magnitude = static_cast<int>(word >> magnitude_bit(reg, e)) & largest;
        return word >> sign_bit(reg, e) & 1 ? -magnitude : magnitude;
    }

    // Registers of an operand A, in units of `unit`.
    static __device__ __forceinline__ void expand(const uint32_t (&word)[words], uint32_t (&reg)[4]) {
        if constexpr (Bits == 4) {
            const uint32_t turned = permute(word[0], word[0], 0x2103);
            reg[0] = word[0] & 0x80708070u;
            reg[1] = word[0] << 4 & 0x80708070u;
            reg[2] = turned & 0x80708070u;
            reg[3] = turned << 4 & 0x80708070u;
        } else {
#pragma unroll
            for (int w = 0; w < 2; ++w) {
                reg[2 * w] = word[w] & 0x807f807fu;
                reg[2 * w + 1] = permute(word[w], word[w], 0x2301) & 0x807f807fu;
            }
        }
    }
};

// The operands of a block, which a lane reads 16 bytes at a time, and the scales behind them.
template <int Operands, int Bits, int FirstByte>
struct IntegerOperands {
    using Word = IntegerWord<Bits>;
    static constexpr int operands = Operands;
    static constexpr int operands_at_once = 4 / Word::words;  // in 16 bytes of a lane
    static constexpr int scale_start = FirstByte + Operands * 128 * Word::words;
    static constexpr int block_bytes = scale_start + 2 * block_tokens;

    // Where word w of an operand starts, in bytes from the start of the block.
    static constexpr int word_byte(int operand, int lane, int w) {
        return FirstByte +
               4 * ((operand / operands_at_once * 32 + lane) * 4 + operand % operands_at_once * Word::words + w);
    }
};

// All channels. Keys: operand (a, s), number a * key_steps + s, has the tokens 16a + g and 16a + 8 + g and the channels
// D/4 t + 4s ... + 3. Values: operand (i, k), number i * 2 + k, has the channels D/8 g + 2i and the next, and the tokens
// 16k + 2t, 16k + 2t + 1 and those 8 later.
template <int HeadDim, int Bits>
struct IntegerGeometry : IntegerOperands<HeadDim / 8, Bits, 0> {
    static constexpr int key_steps = HeadDim / 16;

    struct Element {
        int token, channel;
    };
    static __device__ __forceinline__ Element element(bool keys, int operand, int lane, int reg, int e) {
        const int g = lane >> 2, t = lane & 3;
        if (keys)
            return {16 * (operand / key_steps) + 8 * (reg & 1) + g,
                    HeadDim / 4 * t + 4 * (operand % key_steps) + 2 * (reg >> 1) + e};
        return {16 * (operand & 1) + 8 * (reg >> 1) + 2 * t + e, HeadDim / 8 * g + 2 * (operand >> 1) + (reg & 1)};
    }
};

// Two of each four: positions and operands of sparse products as common/balanced.cuh has them.
template <int HeadDim, int Bits>
struct BalancedIntegerGeometry
    : IntegerOperands<BalancedGeometry<HeadDim>::products, Bits, BalancedGeometry<HeadDim>::position_bytes> {};

// Unstructured values: bytes. One of 8 bits has the sign in bit 7 above the magnitude. One of 4 bits shares its byte with one of
// another run (UnstructuredDecoder): the first has the sign in bit 7 and the magnitude in the bits 0 ... 2, the second has them in
// bit 6 and the bits 3 ... 5. A byte that stands in both bytes of a half is an f16 but for a shift and a mask.
struct IntegerByte {
    static constexpr float unit = 0x1p-24f;  // of the f16 that a magnitude of 1 becomes
    int bits;

    constexpr SignedByte integer(int second) const { return {bits, 7 - second, 3 * second}; }
    // What makes f16 numbers of second values: (x * second_power) & mask, `second_factor` units for a magnitude of 1.
    constexpr uint32_t second_power() const { return bits == 4 ? 2 : 1; }
    constexpr float second_factor() const { return bits == 4 ? 16.0f : 1.0f; }
    constexpr uint32_t mask(int second) const { return bits == 8 ? 0x807f807fu : second ? 0x80708070u : 0x80078007u; }

    // Of value `index` of a block whose runs have so many values.
    struct Place {
        int byte, second;
    };
    constexpr Place place(int index, int run_values) const {
        if (bits == 8) return {index, 0};
        const int run = index / run_values;
        return {run / 2 * run_values + index % run_values, run & 1};
    }
};

// Tokens of a run.
constexpr int run_tokens(int head_dim, bool keys) {
    return keys && head_dim == 128 ? 8 : 16;
}

// Place of a token's scale behind the values: lane 4g + t reads those of the tokens g, 8 + g, 16 + g, 24 + g at once.
__host__ __device__ constexpr int scale_place(int token) {
    return 4 * (token & 7) + (token >> 3);
}

}  // namespace mustafar::cuda
