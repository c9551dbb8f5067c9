// Keys of a row's channels, by which the largest are found. Like row.h, compiled for each instruction set.
#pragma once

#if defined(__AVX512F__)
#include "cpu/avx512.h"
#endif
#include "cpu/row.h"

namespace mustafar {
namespace {

// A row's magnitudes as integers in the same order: the bits without the sign, with all NaNs as one value above
// infinity.
template <class T>
struct Magnitude {
    using Bits = typename T::Bits;
    static constexpr Bits mask = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
    static constexpr Bits nan = T::infinity + 1;
    static Bits key(Bits bits) {
        const Bits magnitude = bits & mask;
        return magnitude > nan ? nan : magnitude;
    }
};

#if !defined(__AVX512F__)
// The bits of value * importance, as f32, for each channel of a row.
template <class T>
void score_row(const void* source, const float* importance, int head_dim, uint32_t* scores) {
    const typename T::Bits* row = static_cast<const typename T::Bits*>(source);
    int c = 0;
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, F16>)
        for (; c < head_dim; c += 8) {
            const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + c)));
            const __m256 products = _mm256_mul_ps(values, _mm256_loadu_ps(importance + c));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores + c), _mm256_castps_si256(products));
        }
#endif
    for (; c < head_dim; ++c) scores[c] = bits_of_f32(T::load(row[c]) * importance[c]);
}
#endif

struct KeyRange {
    uint32_t largest = 0;
    uint32_t least = ~0u;  // the smallest above zero, minus one: zeros wrap around and drop out

    void add(KeyRange other) {
        largest = other.largest > largest ? other.largest : largest;
        least = other.least < least ? other.least : least;
    }
};

// Keys of a row's channels, in the order of their magnitudes or, with an importance, of their scores; below 2^31.
template <class T>
MUSTAFAR_INLINE KeyRange keys_of(const void* source, const float* importance, int head_dim,
                                 uint32_t* __restrict__ keys) {
    const typename T::Bits* row = static_cast<const typename T::Bits*>(source);
#if defined(__AVX512F__)
    const __m512i mask = _mm512_set1_epi32(Magnitude<F32>::mask), nan = _mm512_set1_epi32(Magnitude<F32>::nan);
    __m512i largest = _mm512_setzero_si512(), least = _mm512_set1_epi32(-1);
    for (int c = 0; c < head_dim; c += 16) {
        __m512 x = load16<T>(row + c);
        if (importance != nullptr) x = _mm512_mul_ps(x, _mm512_loadu_ps(importance + c));
        const __m512i key = _mm512_min_epu32(_mm512_and_si512(_mm512_castps_si512(x), mask), nan);
        _mm512_storeu_si512(keys + c, key);
        largest = _mm512_max_epu32(largest, key);
        least = _mm512_min_epu32(least, _mm512_sub_epi32(key, _mm512_set1_epi32(1)));
    }
    return {_mm512_reduce_max_epu32(largest), _mm512_reduce_min_epu32(least)};
#else
    KeyRange range;
    if (importance != nullptr) score_row<T>(source, importance, head_dim, keys);
    for (int c = 0; c < head_dim; ++c) {
        keys[c] = importance == nullptr ? uint32_t{Magnitude<T>::key(row[c])} : Magnitude<F32>::key(keys[c]);
        range.add({keys[c], keys[c] - 1});
    }
    return range;
#endif
}

/*
 * Keys have 31 bits. In the 16 octaves up to the largest, 27 bits distinguish them, and nearly all but zeros lie there:
 * the key less a base, or 0 below it. A difference is at most 2^27 - 2, which leaves a rank of 31 bits room for four
 * more.
 */
[[maybe_unused]] MUSTAFAR_INLINE uint32_t key_base(uint32_t largest) {
    constexpr uint32_t span = (1u << 27) - 2;
    return largest > span ? largest - span : 0;
}

[[maybe_unused]] MUSTAFAR_INLINE uint32_t above_base(uint32_t key, uint32_t base) {
    return (key > base ? key : base) - base;
}

// The upper 14 of the 27 bits of each key above a base.
[[maybe_unused]] MUSTAFAR_INLINE void narrow_keys(const uint32_t* keys, int count, uint32_t base, uint16_t* narrowed) {
#if defined(__AVX512F__)
    const __m512i bases = _mm512_set1_epi32(static_cast<int>(base));
    for (int c = 0; c < count; c += 16) {
        const __m512i key = _mm512_loadu_si512(keys + c);
        const __m512i above = _mm512_sub_epi32(_mm512_max_epu32(key, bases), bases);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(narrowed + c),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(above, 13)));
    }
#else
    for (int c = 0; c < count; ++c) narrowed[c] = static_cast<uint16_t>(above_base(keys[c], base) >> 13);
#endif
}

}  // namespace
}  // namespace mustafar
