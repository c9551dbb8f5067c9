// Products with integers by AVX-512 VNNI. Like avx512.h, compiled for each set of extensions: with VBMI2 one
// instruction puts packed bytes in place.
#pragma once

#include <immintrin.h>

#include <cstring>

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
    // GCC would make copies of the sums.
    MUSTAFAR_INLINE static Sum dot(Sum sum, Values values, Part part) {
        return in_register(_mm512_dpbusd_epi32(sum, values, part));
    }
    MUSTAFAR_INLINE static Lanes<bytes>::Ints lanes(Sum sum) { return reinterpret_cast<Lanes<bytes>::Ints>(sum); }
    MUSTAFAR_INLINE static void widen(const uint16_t* halves, int count, float* out) {
        for (int i = 0; i < count; i += 16)
            _mm512_store_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i))));
    }

private:
    MUSTAFAR_INLINE static __m512i nibbles() { return _mm512_set1_epi8(15); }
};

// 64 channels of a token from packed values, of which there are at most Bytes. Reads as many bytes.
template <int Bytes>
MUSTAFAR_INLINE __m512i spread64(const int8_t* values, uint64_t bits) {
#if defined(__AVX512VBMI2__)
    return expand_lanes(
        bits, Bytes == 64 ? _mm512_loadu_si512(values)
                          : _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values))));
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

// Whether no 64 channels of any token have more than 32 values. Such blocks are read in vectors of 32 bytes, of which
// fewer cross a cache line: at 40 of 128 channels kept, attention then takes about 4 % less time.
template <int W>
MUSTAFAR_INLINE bool fits_half_vectors([[maybe_unused]] const uint32_t* bitmap) {
#if defined(__AVX512VBMI2__)
    if constexpr (W % 2 == 0) {
        __m512i most = _mm512_setzero_si512();
        for (int i = 0; i < block_tokens * W; i += 16)
            most = _mm512_max_epu64(most, _mm512_popcnt_epi64(_mm512_loadu_si512(bitmap + i)));
        return _mm512_cmpgt_epu64_mask(most, _mm512_set1_epi64(32)) == 0;
    }
#endif
    return false;
}

constexpr int segments_of(int words) {
    return (words + 1) / 2;
}

// Reads the tokens of a packed block one after another, 64 channels at a time. Keys prefetch what follows meanwhile; values
// leave it to their sums, which take longer and so spread the prefetches more evenly.
template <int W, int Bytes, bool Prefetch>
class PackedReader {
public:
    static constexpr int segments = segments_of(W);

    // values: the block's, in 8 bits.
    MUSTAFAR_INLINE PackedReader(const char* values, const Block& block, const char* ahead)
        : next_(reinterpret_cast<const int8_t*>(values)), bitmap_(block.bitmap), ahead_(ahead),
          step_(block.bytes / (block_tokens * segments)) {}

    // Integer + 128 of each channel of the token's segment s; all segments are read in turn.
    MUSTAFAR_INLINE __m512i read(int s) {
        uint64_t bits = 0;
        std::memcpy(&bits, bitmap_, W % 2 != 0 && s == segments - 1 ? 4 : 8);
        const __m512i x = spread64<Bytes>(next_, bits);
        next_ += _mm_popcnt_u64(bits);
        bitmap_ += W % 2 != 0 && s == segments - 1 ? 1 : 2;
        if (Prefetch && (Bytes == 64 || s % 2 == 0)) __builtin_prefetch(ahead_);
        ahead_ += step_;
        return _mm512_xor_si512(x, _mm512_set1_epi8(-128));
    }

private:
    const int8_t* next_;
    const uint32_t* bitmap_;
    const char* ahead_;
    int64_t step_;
};

// Calls work.operator()<W>() for the bitmap words per token.
template <class Work>
MUSTAFAR_INLINE void with_words(int head_dim, const Work& work) {
    switch (bitmap_words(head_dim)) {
        case 2: return work.template operator()<2>();
        case 3: return work.template operator()<3>();
        case 4: return work.template operator()<4>();
        default: return work.template operator()<8>();
    }
}

// Part k of 128 bits of the result is the sum of the parts of x[k].
MUSTAFAR_INLINE __m512i sum_parts(const __m512i* x) {
    const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x44), _mm512_shuffle_i32x4(x[0], x[1], 0xee));
    const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2], x[3], 0x44), _mm512_shuffle_i32x4(x[2], x[3], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// The rows of four tokens, 64 channels: afterwards part l of x[j] has quad 4l + j of each token.
MUSTAFAR_INLINE void transpose_parts(__m512i* x) {
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

// Four tokens at a time, each segment as transpose_parts leaves it: from a packed block, or from where they were written.
template <int W, int Bytes>
struct PackedFours {
    PackedReader<W, Bytes, true> reader;

    MUSTAFAR_INLINE void read(__m512i (&x)[4 * segments_of(W)]) {
        for (int i = 0; i < 4; ++i)
            for (int s = 0; s < segments_of(W); ++s) x[4 * s + i] = reader.read(s);
        for (int s = 0; s < segments_of(W); ++s) transpose_parts(x + 4 * s);
    }
    void write(char* out) {
        for (int four = 0; four < block_tokens / 4; ++four) {
            __m512i x[4 * segments_of(W)];
            read(x);
            std::memcpy(out + four * int{sizeof x}, x, sizeof x);
        }
    }
};

struct WrittenFours {
    const char* next;

    template <int Vectors>
    MUSTAFAR_INLINE void read(__m512i (&x)[Vectors]) {
        std::memcpy(x, next, sizeof x);
        next += sizeof x;
    }
};

// R query rows as they are multiplied with such tokens.
template <int S, int Digits, int R>
struct PartQueries {
    __m512i digits[R * Digits][4 * S];  // part l of vector 4s + j has the digits of a segment's quad 4l + j, four times
    __m512i start[R * Digits];          // what sums start from: minus what the bias of the values adds
    float step[R];

    PartQueries(const char* prepared, int64_t row_bytes, int head_dim) {
        for (int r = 0; r < R; ++r, prepared += row_bytes) {
            __m512i bias[Digits] = {};
            for (int d = 0; d < Digits; ++d)
                for (int s = 0; s < S; ++s) {
                    const uint64_t valid =
                        _bzhi_u64(~0ull, static_cast<unsigned>(head_dim - 64 * s < 64 ? head_dim - 64 * s : 64));
                    const __m512i quads = _mm512_maskz_loadu_epi8(valid, prepared + d * head_dim + 64 * s);
                    __m512i* const own = digits[r * Digits + d] + 4 * s;
                    own[0] = _mm512_shuffle_epi32(quads, _MM_PERM_AAAA);
                    own[1] = _mm512_shuffle_epi32(quads, _MM_PERM_BBBB);
                    own[2] = _mm512_shuffle_epi32(quads, _MM_PERM_CCCC);
                    own[3] = _mm512_shuffle_epi32(quads, _MM_PERM_DDDD);
                    for (int j = 0; j < 4; ++j) bias[d] = _mm512_dpbusd_epi32(bias[d], _mm512_set1_epi8(-128), own[j]);
                }
            // The first two digits are joined when they are added up, so the second sum starts from the bias of both.
            const __m512i zero = _mm512_setzero_si512(), both = _mm512_slli_epi32(bias[0], Vnni::shift);
            start[r * Digits] = zero;
            start[r * Digits + 1] = _mm512_sub_epi32(zero, _mm512_add_epi32(both, bias[1]));
            if constexpr (Digits == 3) start[r * Digits + 2] = _mm512_sub_epi32(zero, bias[2]);
            step[r] = query_scale<Vnni, Digits>(const_cast<char*>(prepared), head_dim)->step;
        }
    }
};

/*
 * Scores of the tokens of a block. Lane 4l + i of a sum has token i of four, and of its channels those of the quads 4l + j.
 * The first two digits fit 32 bits together; with the third of wide numbers they would not.
 */
template <class Fours, int S, int Digits, int R>
void part_scores(Fours keys, const PartQueries<S, Digits, R>& queries, const float* scales, float* scores,
                 int64_t stride) {
    constexpr int fours = block_tokens / 4, most = R * Digits <= 8 ? 2 : 1;  // as sums fit the registers
    __m512i first_two[R][fours], third[R][fours];
    for (int four = 0; four < fours; four += most) {
        __m512i x[most][4 * S], sums[most][R * Digits];
        MUSTAFAR_UNROLL
        for (int f = 0; f < most; ++f) {
            keys.read(x[f]);
            MUSTAFAR_UNROLL
            for (int k = 0; k < R * Digits; ++k) sums[f][k] = queries.start[k];
        }
        MUSTAFAR_UNROLL
        for (int v = 0; v < 4 * S; ++v) {
            MUSTAFAR_UNROLL
            for (int k = 0; k < R * Digits; ++k) {
                const __m512i digits = in_register(queries.digits[k][v]);
                MUSTAFAR_UNROLL
                for (int f = 0; f < most; ++f) sums[f][k] = _mm512_dpbusd_epi32(sums[f][k], x[f][v], digits);
            }
        }
        MUSTAFAR_UNROLL
        for (int f = 0; f < most; ++f) {
            MUSTAFAR_UNROLL
            for (int r = 0; r < R; ++r) {
                const __m512i* const own = sums[f] + r * Digits;
                first_two[r][four + f] = _mm512_add_epi32(_mm512_slli_epi32(own[0], Vnni::shift), own[1]);
                if constexpr (Digits == 3) third[r][four + f] = own[2];
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < block_tokens; t += 16) {
            __m512 numbers = _mm512_cvtepi32_ps(sum_parts(first_two[r] + t / 4));
            if constexpr (Digits == 3)
                numbers = _mm512_fmadd_ps(numbers, _mm512_set1_ps(1 << Vnni::shift),
                                          _mm512_cvtepi32_ps(sum_parts(third[r] + t / 4)));
            const __m512 factors = _mm512_mul_ps(_mm512_load_ps(scales + t), _mm512_set1_ps(queries.step[r]));
            _mm512_storeu_ps(scores + r * stride + t, _mm512_mul_ps(numbers, factors));
        }
}

// Values of a packed block in quad order, in whole segments: with head_dim 80 and 96 more than there are.
template <int W, int Bytes>
void value_rows(PackedReader<W, Bytes, false> reader, char* out) {
    constexpr int S = segments_of(W);
    // 16 adjacent channels are unpacked into four parts of 128 bits, so each part gets four of them.
    const __m512i spread = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int quad = 0; quad < block_tokens / 4; ++quad) {
        __m512i x[4][S];
        for (int t = 0; t < 4; ++t)
            for (int s = 0; s < S; ++s) x[t][s] = _mm512_permutexvar_epi32(spread, reader.read(s));
        MUSTAFAR_UNROLL
        for (int s = 0; s < S; ++s) {
            const __m512i a = _mm512_unpacklo_epi8(x[0][s], x[1][s]), b = _mm512_unpackhi_epi8(x[0][s], x[1][s]);
            const __m512i c = _mm512_unpacklo_epi8(x[2][s], x[3][s]), d = _mm512_unpackhi_epi8(x[2][s], x[3][s]);
            const __m512i y[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
                                  _mm512_unpackhi_epi16(b, d)};
            MUSTAFAR_UNROLL
            for (int l = 0; l < 4; ++l) _mm512_store_si512(out + ((4 * s + l) * 8 + quad) * 64, y[l]);
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

// As Packed, with keys in an order that takes half of the shuffles. If all query rows are multiplied at once (1, 2 or 4 of them), keys
// are multiplied as they are expanded.
struct PackedVnni {
    static void values(const QuadBlocks& blocks, int block, char* out) {
        with_words(blocks.head_dim, [&]<int W>() {
            with_reader<W, false>(blocks, block, [&](const auto& reader) { value_rows(reader, out); });
        });
    }
    static void scores(const QuadBlocks& blocks, bool wide, const void* prepared, int rows, float* scores,
                       int64_t stride) {
        with_words(blocks.head_dim, [&]<int W>() {
            const auto multiply = [&](const auto& with_keys) {
                multiply_blocks<W>(blocks, wide, prepared, rows, scores, stride, with_keys);
            };
            if (rows <= Vnni::rows && (rows & (rows - 1)) == 0)
                return multiply([&](int block, const auto& work) { with_fours<W>(blocks, block, work); });
            const QuadBlocks written = expanded(blocks, [](const QuadBlocks& source, int block, char* out) {
                with_fours<W>(source, block, [&](auto fours) { fours.write(out); });
            });
            multiply([&](int block, const auto& work) { work(WrittenFours{written.blocks[block].values}); });
        });
    }

private:
    // with_keys(block, work) calls work(fours of the block).
    template <int W, class WithKeys>
    static void multiply_blocks(const QuadBlocks& blocks, bool wide, const void* prepared, int rows, float* scores,
                                int64_t stride, const WithKeys& with_keys) {
        const int64_t row_bytes = query_bytes<Vnni>(blocks.head_dim);
        for_query_rows<Vnni>(rows, wide, [&]<int Digits, int R>(int first) {
            const PartQueries<segments_of(W), Digits, R> queries(static_cast<const char*>(prepared) + first * row_bytes,
                                                                 row_bytes, blocks.head_dim);
            for (int b = 0; b < blocks.count; ++b) {
                alignas(64) float scales[block_tokens];
                Vnni::widen(blocks.blocks[b].scales, block_tokens, scales);
                with_keys(b, [&](const auto& keys) {
                    part_scores(keys, queries, scales, scores + first * stride + b * block_tokens, stride);
                });
            }
        });
    }
    template <int W, class Work>
    MUSTAFAR_INLINE static void with_fours(const QuadBlocks& blocks, int block, const Work& work) {
        with_reader<W, true>(blocks, block, [&]<int Bytes>(const PackedReader<W, Bytes, true>& reader) {
            work(PackedFours<W, Bytes>{reader});
        });
    }
    // Calls work(reader of the block).
    template <int W, bool Prefetch, class Work>
    MUSTAFAR_INLINE static void with_reader(const QuadBlocks& blocks, int block, const Work& work) {
        const Block& own = blocks.blocks[block];
        alignas(64) int8_t integers[block_tokens * max_head_dim + 64];
        const char* values = own.values;
        if (blocks.bits == 4) {
            unpack_nibbles512(own.values, stored_values(own, blocks.head_dim), integers);
            values = reinterpret_cast<const char*>(integers);
        }
        if (fits_half_vectors<W>(own.bitmap))
            work(PackedReader<W, 32, Prefetch>(values, own, blocks.ahead[block]));
        else
            work(PackedReader<W, 64, Prefetch>(values, own, blocks.ahead[block]));
    }
};

}  // namespace
}  // namespace mustafar
