// Products with integers by AVX-512 VNNI. Like avx512.h, compiled for each set of extensions: with VBMI2 one
// instruction puts packed bytes in place.
#pragma once

#include <immintrin.h>

#include "cpu/avx512.h"
#include "cpu/quads_kernels.h"

namespace mustafar {
namespace {

struct Vnni {
    static constexpr int bytes = 64, rows = 4, shift = 7;
    using Digit = int8_t;
    using Values = __m512i;
    using Part = __m512i;
    using Sum = __m512i;

    static constexpr int digits(bool wide) { return wide ? 3 : 2; }
    static constexpr int bias(int bits) { return bits == 8 ? 128 : 8; }

    MUSTAFAR_INLINE static Sum zero() { return _mm512_setzero_si512(); }
    MUSTAFAR_INLINE static Values load(const void* values) { return _mm512_loadu_si512(values); }
    MUSTAFAR_INLINE static Values low(const char* values) { return _mm512_and_si512(load(values), nibbles()); }
    MUSTAFAR_INLINE static Values high(const char* values) {
        return _mm512_and_si512(_mm512_srli_epi16(load(values), 4), nibbles());
    }
    MUSTAFAR_INLINE static Part broadcast(const void* digits) {
        int32_t four;
        std::memcpy(&four, digits, sizeof four);
        return _mm512_set1_epi32(four);
    }
    MUSTAFAR_INLINE static Sum dot(Sum sum, Values values, Part part) { return _mm512_dpbusd_epi32(sum, values, part); }
    MUSTAFAR_INLINE static Lanes<bytes>::Ints lanes(Sum sum) { return reinterpret_cast<Lanes<bytes>::Ints>(sum); }
    MUSTAFAR_INLINE static void widen(const uint16_t* halves, int count, float* out) {
        for (int i = 0; i < count; i += 16)
            _mm512_store_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i))));
    }

private:
    MUSTAFAR_INLINE static __m512i nibbles() { return _mm512_set1_epi8(15); }
};

// 64 channels of a token from packed values. Reads 64 bytes.
MUSTAFAR_INLINE __m512i spread64(const int8_t* values, uint64_t bits) {
#if defined(__AVX512VBMI2__)
    return expand_lanes(bits, _mm512_loadu_si512(values));
#else
    __m128i sixteen[4];
    for (int i = 0; i < 4; ++i) {
        __m128i octets[2];
        for (__m128i& octet : octets) {
            const uint8_t* const channels = places_of_byte.of[bits & 0xff];
            octet = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values)),
                                     _mm_loadl_epi64(reinterpret_cast<const __m128i*>(channels)));
            values += _mm_popcnt_u64(bits & 0xff);
            bits >>= 8;
        }
        sixteen[i] = _mm_unpacklo_epi64(octets[0], octets[1]);
    }
    const __m256i low = _mm256_set_m128i(sixteen[1], sixteen[0]), high = _mm256_set_m128i(sixteen[3], sixteen[2]);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#endif
}

// Lane l of x[i] becomes lane i of x[l].
MUSTAFAR_INLINE void transpose_lanes(__m512i& x0, __m512i& x1, __m512i& x2, __m512i& x3) {
    const __m512i a = _mm512_shuffle_i32x4(x0, x1, 0x44), b = _mm512_shuffle_i32x4(x0, x1, 0xee);
    const __m512i c = _mm512_shuffle_i32x4(x2, x3, 0x44), d = _mm512_shuffle_i32x4(x2, x3, 0xee);
    x0 = _mm512_shuffle_i32x4(a, c, 0x88);
    x1 = _mm512_shuffle_i32x4(a, c, 0xdd);
    x2 = _mm512_shuffle_i32x4(b, d, 0x88);
    x3 = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// The tokens of a block, 64 channels at a time.
struct DenseRows {
    const int8_t* values;
    int head_dim;
    MUSTAFAR_INLINE __m512i read(int token, int segment) const {
        return _mm512_loadu_si512(values + token * head_dim + 64 * segment);
    }
};

struct PackedRows {
    const int8_t* values;
    uint64_t bits[block_tokens][max_head_dim / 64];
    int start[block_tokens][max_head_dim / 64];  // of the segment's values

    // Fills bits and start; returns how many values there are.
    template <int Segments>
    int scan(const uint32_t* bitmap, int words) {
        int count = 0;
        for (int t = 0; t < block_tokens; ++t)
            for (int s = 0; s < Segments; ++s) {
                const uint32_t* const row = bitmap + t * words + 2 * s;
                const uint64_t high = 2 * s + 1 < words ? row[1] : 0;
                bits[t][s] = row[0] | high << 32;
                start[t][s] = count;
                count += static_cast<int>(_mm_popcnt_u64(bits[t][s]));
            }
        return count;
    }
    MUSTAFAR_INLINE __m512i read(int token, int segment) const {
        return spread64(values + start[token][segment], bits[token][segment]);
    }
};

template <class Rows>
MUSTAFAR_INLINE void expand_keys(const Rows& rows, int head_dim, char* out) {
    const __m512i signs = _mm512_set1_epi8(-128);
    const int quads = head_dim / 4;
    for (int half = 0; half < 2; ++half)
        for (int segment = 0; 16 * segment < quads; ++segment) {
            __m512i x[16], y[16];
            MUSTAFAR_UNROLL
            for (int t = 0; t < 16; ++t) x[t] = _mm512_xor_si512(rows.read(16 * half + t, segment), signs);
            MUSTAFAR_UNROLL
            for (int i = 0; i < 16; i += 2) {
                y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
                y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
            }
            MUSTAFAR_UNROLL
            for (int i = 0; i < 16; i += 4) {
                x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
                x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
                x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
                x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
            }
            // Lane l of x[4i + j] now has quad 4l + j of tokens 4i ... 4i + 3.
            char* const vectors = out + (half * quads + 16 * segment) * 64;
            const int lanes = quads - 16 * segment < 16 ? (quads - 16 * segment) / 4 : 4;
            MUSTAFAR_UNROLL
            for (int j = 0; j < 4; ++j) {
                transpose_lanes(x[j], x[4 + j], x[8 + j], x[12 + j]);
                MUSTAFAR_UNROLL
                for (int l = 0; l < 4; ++l)
                    if (l < lanes) _mm512_storeu_si512(vectors + (4 * l + j) * 64, x[4 * l + j]);
            }
        }
}

template <int Segments, class Rows>
MUSTAFAR_INLINE void expand_values(const Rows& rows, int head_dim, char* out) {
    const __m512i signs = _mm512_set1_epi8(-128);
    const int groups = head_dim / 16;
    for (int quad = 0; quad < block_tokens / 4; ++quad) {
        __m512i x[Segments][4];
        MUSTAFAR_UNROLL
        for (int t = 0; t < 4; ++t)
            for (int s = 0; s < Segments; ++s) x[s][t] = _mm512_xor_si512(rows.read(4 * quad + t, s), signs);
        MUSTAFAR_UNROLL
        for (int s = 0; s < Segments; ++s) {
            const __m512i a = _mm512_unpacklo_epi8(x[s][0], x[s][1]), b = _mm512_unpackhi_epi8(x[s][0], x[s][1]);
            const __m512i c = _mm512_unpacklo_epi8(x[s][2], x[s][3]), d = _mm512_unpackhi_epi8(x[s][2], x[s][3]);
            __m512i y[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
                            _mm512_unpackhi_epi16(b, d)};
            transpose_lanes(y[0], y[1], y[2], y[3]);
            MUSTAFAR_UNROLL
            for (int l = 0; l < 4; ++l)
                if (4 * s + l < groups) _mm512_storeu_si512(out + ((4 * s + l) * 8 + quad) * 64, y[l]);
        }
    }
}

// As unpack_nibbles; reads up to 31 and writes up to 63 bytes more.
MUSTAFAR_INLINE void unpack_nibbles512(const char* values, int count, int8_t* integers) {
    const __m512i meaning =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, -1, -2, -3, -4, -5, -6, -7));
    for (int i = 0; i < count; i += 64) {
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i / 2));
        const __m512i pairs = _mm512_cvtepu8_epi16(packed);
        const __m512i nibbles =
            _mm512_and_si512(_mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4)), _mm512_set1_epi8(15));
        _mm512_storeu_si512(integers + i, _mm512_shuffle_epi8(meaning, nibbles));
    }
}

// As expand_block, in registers.
[[maybe_unused]] void expand_block512(const char* values, const uint32_t* bitmap, int bits, int head_dim, bool keys,
                                      char* out) {
    alignas(64) int8_t integers[block_tokens * max_head_dim + 64];
    const int words = bitmap_words(head_dim);
    PackedRows packed;
    const int count = bitmap == nullptr ? block_tokens * head_dim
                      : words == 2      ? packed.scan<1>(bitmap, words)
                      : words <= 4      ? packed.scan<2>(bitmap, words)
                                        : packed.scan<4>(bitmap, words);
    const int8_t* first = reinterpret_cast<const int8_t*>(values);
    if (bits == 4) {
        unpack_nibbles512(values, count, integers);
        first = integers;
    }
    const auto expand = [&](const auto& rows) MUSTAFAR_INLINE_LAMBDA {
        keys         ? expand_keys(rows, head_dim, out)
        : words == 2 ? expand_values<1>(rows, head_dim, out)
        : words <= 4 ? expand_values<2>(rows, head_dim, out)
                     : expand_values<4>(rows, head_dim, out);
    };
    packed.values = first;
    if (bitmap != nullptr)
        expand(packed);
    else
        expand(DenseRows{first, head_dim});
}

}  // namespace
}  // namespace mustafar
