// Portable operations on one token's row. Each instruction set's source file includes this header and compiles its own
// copy. Everything is in an unnamed namespace, since code built for one instruction set must never be linked into
// another's.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "mustafar/mustafar.h"

namespace mustafar {
namespace {  // NOLINT(cert-dcl59-cpp): see above

#define MUSTAFAR_INLINE [[gnu::always_inline]] inline
#define MUSTAFAR_INLINE_LAMBDA __attribute__((always_inline))

[[maybe_unused]] inline float f32_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

[[maybe_unused]] inline uint32_t bits_of_f32(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Without a branch, so that a loop over channels can be vectorised.
[[maybe_unused]] inline float f16_to_f32(uint16_t bits) {
    const uint32_t sign = uint32_t{bits} << 16 & 0x80000000u, magnitude = bits & 0x7fffu;
    const uint32_t subnormal = bits_of_f32(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
    const uint32_t infinite = 0u - uint32_t{magnitude >= 0x7c00u}, tiny = 0u - uint32_t{magnitude < 0x0400u};
    const uint32_t normal = (magnitude << 13) + 0x38000000u + (infinite & 0x38000000u);  // infinity and NaN, too
    return f32_of_bits(sign | (subnormal & tiny) | (normal & ~tiny));
}

// To nearest, ties to even; NaN stays NaN.
[[maybe_unused]] inline uint16_t f32_to_f16(float value) {
    const uint32_t bits = bits_of_f32(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past the largest half
    if (magnitude < 0x38800000u) {
        // Subnormal: adding 0.5 puts the unit of the half's last place, 2^-24, at the float's last place.
        const uint32_t sum = bits_of_f32(f32_of_bits(magnitude) + 0.5f);
        return static_cast<uint16_t>(sign | (sum - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

[[maybe_unused]] inline float bf16_to_f32(uint16_t bits) {
    return f32_of_bits(uint32_t{bits} << 16);
}

// To nearest, ties to even; NaN stays NaN.
[[maybe_unused]] inline uint16_t f32_to_bf16(float value) {
    const uint32_t bits = bits_of_f32(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Minimax polynomial of 2^f on [-0.5, 0.5], the highest power first.
[[maybe_unused]] inline constexpr float exp2_polynomial[] = {
    1.535336188e-4f, 1.339887440e-3f, 9.618437357e-3f, 5.550332548e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.0f};

struct F32 {
    using Bits = uint32_t;
    static constexpr Bits infinity = 0x7f800000u;
    static float load(Bits bits) { return f32_of_bits(bits); }
    static Bits store(float value) { return bits_of_f32(value); }
};

struct F16 {
    using Bits = uint16_t;
    static constexpr Bits infinity = 0x7c00u;
    static float load(Bits bits) { return f16_to_f32(bits); }
    static Bits store(float value) { return f32_to_f16(value); }
};

struct BF16 {
    using Bits = uint16_t;
    static constexpr Bits infinity = 0x7f80u;
    static float load(Bits bits) { return bf16_to_f32(bits); }
    static Bits store(float value) { return f32_to_bf16(value); }
};

// The lowest `count` set bits of `bits`.
[[maybe_unused]] inline uint32_t lowest_set(uint32_t bits, int count) {
    uint32_t rest = bits;
    for (int i = 0; i < count; ++i) rest &= rest - 1;
    return bits & ~rest;
}

// Bit i is flags[i], which is 0 or 1.
[[maybe_unused]] inline uint32_t bits_of_16(const uint8_t* flags) {
    uint32_t bits = 0;
    for (int half = 0; half < 2; ++half) {
        uint64_t bytes = 0;
        for (int i = 0; i < 8; ++i) bytes |= uint64_t{flags[8 * half + i]} << 8 * i;
        // Bit i of the product's highest byte is the lowest bit of byte i; no sum carries.
        bits |= static_cast<uint32_t>(bytes * 0x0102040810204080u >> 56) << 8 * half;
    }
    return bits;
}

template <class T, int W>
int pack_row(const void* source, const uint32_t* bitmap, void* target) {
    using Bits = typename T::Bits;
    const Bits* row = static_cast<const Bits*>(source);
    Bits* values = static_cast<Bits*>(target);
    int count = 0;
    for (int w = 0; w < W; ++w)
        for (uint32_t bits = bitmap[w]; bits != 0; bits &= bits - 1)
            values[count++] = row[32 * w + std::countr_zero(bits)];
    return count;
}

template <class T, int W>
int unpack_row(const void* source, const uint32_t* bitmap, int head_dim, void* target) {
    using Bits = typename T::Bits;
    const Bits* values = static_cast<const Bits*>(source);
    Bits* row = static_cast<Bits*>(target);
    for (int c = 0; c < head_dim; ++c) row[c] = 0;
    int count = 0;
    for (int w = 0; w < W; ++w)
        for (uint32_t bits = bitmap[w]; bits != 0; bits &= bits - 1, ++count) {
            const int channel = 32 * w + std::countr_zero(bits);
            if (channel < head_dim) row[channel] = values[count];
        }
    return count;
}

template <int W>
int count_bits(const uint32_t* bitmap, int tokens) {
    const int words = tokens * W, whole = words / 4 * 4;
    int count[2] = {};
    for (int i = 0; i < whole; i += 4) {
        uint64_t two[2];
        std::memcpy(two, bitmap + i, sizeof two);
        count[0] += std::popcount(two[0]);
        count[1] += std::popcount(two[1]);
    }
    for (int i = whole; i < words; ++i) count[0] += std::popcount(bitmap[i]);
    return count[0] + count[1];
}

template <class T, int W>
void prepare_f32(const void* source, int head_dim, void* target) {
    const typename T::Bits* row = static_cast<const typename T::Bits*>(source);
    float* prepared = static_cast<float*>(target);
    for (int c = 0; c < 32 * W; ++c) prepared[c] = c < head_dim ? T::load(row[c]) : 0.0f;
}

template <class T>
void finish_row(const float* sums, float factor, int head_dim, void* target) {
    typename T::Bits* row = static_cast<typename T::Bits*>(target);
    for (int c = 0; c < head_dim; ++c) row[c] = T::store(sums[c] * factor);
}

[[maybe_unused]] inline void rescale_row(float* values, int count, float factor) {
    for (int i = 0; i < count; ++i) values[i] *= factor;
}

// Calls body.operator()<rows>(first) for chunks of 8, 4, 2 and 1 rows, none larger than Most.
template <int Most, class Body>
MUSTAFAR_INLINE void for_row_chunks(int rows, const Body& body) {
    int r = 0;
    if constexpr (Most >= 8)
        for (; rows - r >= 8; r += 8) body.template operator()<8>(r);
    if constexpr (Most >= 4)
        for (; rows - r >= 4; r += 4) body.template operator()<4>(r);
    for (; rows - r >= 2; r += 2) body.template operator()<2>(r);
    if (rows > r) body.template operator()<1>(r);
}

/*
 * A weighted sum keeps Count of a row's W segments in registers and takes several passes over the tokens. Calls
 * body.operator()<First, Skip>() for each pass: segments First ... First + Count - 1, of which an earlier pass has done
 * the first Skip (where Count does not divide W).
 */
template <int W, int Count, int Pass = 0, class Body>
MUSTAFAR_INLINE void for_passes(const Body& body) {
    if constexpr (Pass * Count < W) {
        constexpr int first = Pass * Count < W - Count ? Pass * Count : W - Count;
        body.template operator()<first, Pass * Count - first>();
        for_passes<W, Count, Pass + 1>(body);
    }
}

}  // namespace
}  // namespace mustafar
