/*
 * Converts integers in plain order to a block in quad order. Like row.h, compiled for each instruction set.
 * Ops::spread(values, places, out) stores eight bytes: byte i is value number places[i], or 0 for 0x80.
 */
#pragma once

#include <bit>
#include <cstring>

#include "cpu/quads.h"
#include "cpu/row.h"

namespace mustafar {
namespace {  // NOLINT(cert-dcl59-cpp): as row.h

using Bytes = int8_t __attribute__((vector_size(16)));
using Halves = int16_t __attribute__((vector_size(16)));
using Words = int32_t __attribute__((vector_size(16)));

template <class Vector>
MUSTAFAR_INLINE Vector load_vector(const void* address) {
    Vector vector;
    std::memcpy(&vector, address, sizeof vector);
    return vector;
}

// Which of the packed values each of the eight channels of a bitmap byte takes.
struct Places {
    uint8_t of[256][8];
};
constexpr Places make_places() {
    Places places{};
    for (unsigned byte = 0; byte < 256; ++byte)
        for (unsigned c = 0; c < 8; ++c)
            places.of[byte][c] =
                byte >> c & 1 ? static_cast<uint8_t>(std::popcount(byte & ((1u << c) - 1))) : uint8_t{0x80};
    return places;
}
alignas(64) inline constexpr Places places_of_byte = make_places();

// How many values of a block its bitmap may point at, those of channels past head_dim included: an even number.
MUSTAFAR_INLINE int stored_values(const Block& block, int head_dim) {
    const int most = block_tokens * 32 * bitmap_words(head_dim);
    return block.value_capacity < most ? static_cast<int>(block.value_capacity) : most;
}

// Sign and magnitude to two's complement, low nibble first.
[[maybe_unused]] inline void unpack_nibbles(const char* values, int count, int8_t* integers) {
    for (int i = 0; i < count / 2; ++i) {
        const int byte = static_cast<uint8_t>(values[i]);
        const int low = byte & 7, high = byte >> 4 & 7;
        integers[2 * i] = static_cast<int8_t>(byte & 8 ? -low : low);
        integers[2 * i + 1] = static_cast<int8_t>(byte & 0x80 ? -high : high);
    }
}

// Transposes a matrix of 32-bit elements in four vectors.
MUSTAFAR_INLINE void transpose(Words (&x)[4]) {
    const Words a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5),
                b = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
    const Words c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5),
                d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    x[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    x[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    x[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    x[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

inline constexpr Bytes sign_bits = {-128, -128, -128, -128, -128, -128, -128, -128,
                                    -128, -128, -128, -128, -128, -128, -128, -128};

// [16 tokens][4 channels] vectors of 64 bytes from rows.
[[maybe_unused]] inline void key_quads(const int8_t* rows, int head_dim, char* out) {
    for (int t = 0; t < block_tokens; t += 4)
        for (int channel = 0; channel < head_dim; channel += 16) {
            Words x[4];
            for (int i = 0; i < 4; ++i)
                x[i] = reinterpret_cast<Words>(load_vector<Bytes>(rows + (t + i) * head_dim + channel) ^ sign_bits);
            transpose(x);
            char* const vector = out + (t / 16 * (head_dim / 4) + channel / 4) * 64 + t % 16 * 4;
            for (int i = 0; i < 4; ++i) std::memcpy(vector + i * 64, &x[i], sizeof x[i]);
        }
}

// [16 channels][4 tokens] vectors of 64 bytes from rows.
[[maybe_unused]] inline void value_quads(const int8_t* rows, int head_dim, char* out) {
    for (int channel = 0; channel < head_dim; channel += 16)
        for (int t = 0; t < block_tokens; t += 4, out += 64) {
            Bytes x[4];
            for (int i = 0; i < 4; ++i) x[i] = load_vector<Bytes>(rows + (t + i) * head_dim + channel) ^ sign_bits;
            const auto low = [](Bytes a, Bytes b) MUSTAFAR_INLINE_LAMBDA {
                return reinterpret_cast<Halves>(
                    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
            };
            const auto high = [](Bytes a, Bytes b) MUSTAFAR_INLINE_LAMBDA {
                return reinterpret_cast<Halves>(
                    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
            };
            const Halves a = low(x[0], x[1]), b = high(x[0], x[1]), c = low(x[2], x[3]), d = high(x[2], x[3]);
            const Halves result[4] = {__builtin_shufflevector(a, c, 0, 8, 1, 9, 2, 10, 3, 11),
                                      __builtin_shufflevector(a, c, 4, 12, 5, 13, 6, 14, 7, 15),
                                      __builtin_shufflevector(b, d, 0, 8, 1, 9, 2, 10, 3, 11),
                                      __builtin_shufflevector(b, d, 4, 12, 5, 13, 6, 14, 7, 15)};
            std::memcpy(out, result, sizeof result);
        }
}

// The values of a block in plain order as 8-bit values with all channels, in quad order.
template <class Ops>
void expand_block(const Block& block, int bits, int head_dim, bool keys, char* out) {
    alignas(64) int8_t integers[block_tokens * max_head_dim + 8], rows[block_tokens * max_head_dim];
    const int words = bitmap_words(head_dim);
    const int8_t* next = reinterpret_cast<const int8_t*>(block.values);
    if (bits == 4) {
        unpack_nibbles(block.values, stored_values(block, head_dim), integers);
        next = integers;
    }
    const uint8_t* byte = reinterpret_cast<const uint8_t*>(block.bitmap);
    for (int t = 0; t < block_tokens; ++t)
        for (int octet = 0; octet < 4 * words; ++octet, ++byte) {
            // With head_dim 80 the last octets do not exist, and have no bits.
            if (8 * octet < head_dim) Ops::spread(next, places_of_byte.of[*byte], rows + t * head_dim + 8 * octet);
            next += std::popcount(*byte);
        }
    keys ? key_quads(rows, head_dim, out) : value_quads(rows, head_dim, out);
}

}  // namespace
}  // namespace mustafar
