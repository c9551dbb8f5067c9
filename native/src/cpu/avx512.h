// Shared by the AVX-512 variants: reading tokens, sums over lanes, softmax. Only included by their source files, which
// are compiled for different extensions: what those lack is done with what they have.
#pragma once

#include <immintrin.h>

#include <limits>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

// With VBMI2, bf16 is widened as even and odd channels, which are the lower and upper halves of 32-bit lanes.
template <class T>
#if defined(__AVX512VBMI2__)
constexpr bool by_parity = std::is_same_v<T, BF16>;
#else
constexpr bool by_parity = false;
#endif

// GCC keeps arrays of vectors in memory unless it unrolls the loops over them. With a sanitizer, unrolled loops take the
// compiler many minutes.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define MUSTAFAR_UNROLL _Pragma("GCC unroll 16")
#else
#define MUSTAFAR_UNROLL
#endif

// 32 channels in f32, in the cheapest order: even and odd ones, or the lower and the upper 16.
struct Segment {
    __m512 first, second;
};

// 16 values as f32.
template <class T>
MUSTAFAR_INLINE __m512 load16(const typename T::Bits* values) {
    if constexpr (sizeof(typename T::Bits) == 4) return _mm512_loadu_ps(values);
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    if constexpr (std::is_same_v<T, F16>) return _mm512_cvtph_ps(x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

template <class T>
MUSTAFAR_INLINE Segment widen(__m512i x);

template <>
MUSTAFAR_INLINE Segment widen<F16>(__m512i x) {
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1))};
}

template <>
MUSTAFAR_INLINE Segment widen<BF16>(__m512i x) {
    if constexpr (by_parity<BF16>) {
        const __m512i odd = _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(odd)};
    } else {
        const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
        const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
    }
}

// Even and odd channels as the lower and the upper 16.
MUSTAFAR_INLINE Segment in_order(Segment x) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    return {_mm512_permutex2var_ps(x.first, low, x.second), _mm512_permutex2var_ps(x.first, high, x.second)};
}

// Prefetches what will be read 4 KB later: the CPU's own prefetching falls behind. Readers of packed tokens call it for each word of the
// bitmap, more than once per 64 bytes: where four tokens take turns, lines would else be missed.
MUSTAFAR_INLINE void prefetch_ahead(const void* address) {
    __builtin_prefetch(static_cast<const char*>(address) + 4096);
}

// Loads a vector once for several products; the compiler would load it again for each.
template <class Vector>
MUSTAFAR_INLINE Vector in_register(Vector vector) {
    asm("" : "+v"(vector));
    return vector;
}

/*
 * Expansions and compressions within a register, of as many lanes as the mask has bits. The compiler would make two kinds
 * that are slow on AMD's CPUs: one that reads memory is microcode, and one that writes another register waits for what that
 * register held before.
 */
MUSTAFAR_INLINE __m512 expand_lanes(uint16_t mask, __m512 vector) {
    asm("vexpandps %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(mask));
    return vector;
}
MUSTAFAR_INLINE __m512i compress_lanes(uint16_t mask, __m512i vector) {
    asm("vpcompressd %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(mask));
    return vector;
}
#if defined(__AVX512VBMI2__)
MUSTAFAR_INLINE __m512i expand_lanes(uint32_t mask, __m512i vector) {
    asm("vpexpandw %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(mask));
    return vector;
}
MUSTAFAR_INLINE __m512i expand_lanes(uint64_t mask, __m512i vector) {
    asm("vpexpandb %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(mask));
    return vector;
}
MUSTAFAR_INLINE __m512i compress_lanes(uint32_t mask, __m512i vector) {
    asm("vpcompressw %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(mask));
    return vector;
}
#endif

// A half of a bitmap word as a mask, straight from memory: the compiler would shift one mask to get another, and count its
// bits by way of a general register.
MUSTAFAR_INLINE __mmask16 load_mask(const uint32_t* word, int half) {
    __mmask16 mask;
    std::memcpy(&mask, reinterpret_cast<const char*>(word) + 2 * half, sizeof mask);
    asm("" : "+k"(mask));
    return mask;
}

#if defined(__AVX512VBMI2__)
// 32 channels of a 16-bit dtype from packed values: bit c of bits says whether channel c is stored. Reads 64 bytes.
MUSTAFAR_INLINE __m512i expand16(const uint16_t* values, uint32_t bits) {
    return expand_lanes(bits, _mm512_loadu_si512(values));
}
#endif

// 32 channels from packed values, by a word of the bitmap.
template <class T>
MUSTAFAR_INLINE Segment expand(const typename T::Bits* values, const uint32_t* word) {
#if defined(__AVX512VBMI2__)
    if constexpr (sizeof(typename T::Bits) == 2) return widen<T>(expand16(values, *word));
#endif
    const __m512 low = load16<T>(values), high = load16<T>(values + _mm_popcnt_u32(*word & 0xffffu));
    return {expand_lanes(load_mask(word, 0), low), expand_lanes(load_mask(word, 1), high)};
}

// 32 channels of a row, of which valid ones exist.
template <class T>
MUSTAFAR_INLINE Segment load(const typename T::Bits* row, uint32_t valid) {
    if constexpr (sizeof(typename T::Bits) == 4)
        return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(valid), row),
                _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid >> 16), row + 16)};
    else
        return widen<T>(_mm512_maskz_loadu_epi16(valid, row));
}

// All 32.
template <class T>
MUSTAFAR_INLINE Segment load(const typename T::Bits* row) {
    if constexpr (by_parity<T>)
        return widen<T>(_mm512_loadu_si512(row));
    else
        return {load16<T>(row), load16<T>(row + 16)};
}

// Channels of segment w that exist.
MUSTAFAR_INLINE uint32_t valid_channels(int head_dim, int w) {
    const int channels = head_dim - 32 * w;
    return channels >= 32 ? ~0u : (1u << channels) - 1;
}

// Reads the tokens of a run one after another. Form says what a segment of 32 channels becomes.
template <class Form, int W, bool Packed>
class Reader {
public:
    using Bits = typename Form::Bits;
    using Segment = typename Form::Segment;

    Reader() = default;
    MUSTAFAR_INLINE explicit Reader(const TokenRun& run)
        : bitmap_(run.bitmap), next_(static_cast<const Bits*>(run.data)),
          stride_(run.row_bytes / static_cast<int64_t>(sizeof(Bits))), tail_(valid_channels(run.head_dim, W - 1)) {}

    // Segment w of the token. A token's segments are read or skipped in turn; the next token follows the last.
    MUSTAFAR_INLINE Segment read(int w) {
        const Bits* const values = next_ + (Packed ? 0 : 32 * w);
        const uint32_t* const word = bitmap_;
        if constexpr (!Packed) {
            prefetch_ahead(values);
            if (sizeof(Bits) == 4) prefetch_ahead(values + 16);
        }
        skip(w);
        if constexpr (Packed)
            return Form::expand(values, word);
        else
            return W == 3 && w == 2 ? Form::load(values, tail_) : Form::load(values);  // head_dim 80 and 96
    }
    // Segments First ... First + Count - 1 of the next token, in out.
    template <int First, int Count>
    MUSTAFAR_INLINE void read(Segment* out) {
        for (int w = 0; w < W; ++w) {
            if (w >= First && w < First + Count)
                out[w - First] = read(w);
            else
                skip(w);
        }
    }
    MUSTAFAR_INLINE void skip(int w) {
        if constexpr (Packed) {
            prefetch_ahead(next_);
            next_ += _mm_popcnt_u32(*bitmap_++);
        } else if (w == W - 1) {
            next_ += stride_;
        }
    }
    MUSTAFAR_INLINE void skip_token() {
        if constexpr (Packed) {
            for (int w = 0; w < W; ++w) next_ += _mm_popcnt_u32(*bitmap_++);
        } else {
            next_ += stride_;
        }
    }

private:
    const uint32_t* bitmap_;
    const Bits* next_;
    int64_t stride_;
    uint32_t tail_;
};

// Each fold adds one half of a's lanes to the other half, b's likewise, and joins the two: 128-bit parts first, then lanes
// within the parts.
MUSTAFAR_INLINE __m512 fold_halves(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
MUSTAFAR_INLINE __m512 fold_parts(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
MUSTAFAR_INLINE __m512 fold_pairs(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
MUSTAFAR_INLINE __m512 fold_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

// Lane j of 128-bit part q of the result is the sum of part q of x[j].
MUSTAFAR_INLINE __m512 fold_four(const __m512* x) {
    return fold_lanes(fold_pairs(x[0], x[1]), fold_pairs(x[2], x[3]));
}

/*
 * R rows of scores for the tokens of a run. A sum for each of 16 / R tokens, but not more than four, and for each row stays
 * in registers, and each part of a query is loaded once for these tokens. multiply(r, w, segments, sums) adds to each of
 * the tokens' sums the product of its segment w with row r.
 */
template <int W, int R, class Reader, class Multiply>
MUSTAFAR_INLINE void find_scores(Reader reader, int tokens, float* scores, int64_t stride, const Multiply& multiply) {
    constexpr int batch = 16 / R, together = batch < 4 ? batch : 4, groups = batch / together;
    for (int t = 0; t < tokens; t += batch) {
        const int count = tokens - t < batch ? tokens - t : batch;
        __m512 folded[4] = {};
        for (int group = 0; group * together < count; ++group) {
            Reader own[together];
            own[0] = reader;
            MUSTAFAR_UNROLL
            for (int i = 1; i < together; ++i) {
                own[i] = own[i - 1];
                if (group * together + i < count) own[i].skip_token();  // otherwise the last one again
            }
            __m512 sums[R][together] = {};
            MUSTAFAR_UNROLL
            for (int w = 0; w < W; ++w) {
                typename Reader::Segment segments[together];
                MUSTAFAR_UNROLL
                for (int i = 0; i < together; ++i) segments[i] = own[i].read(w);
                MUSTAFAR_UNROLL
                for (int r = 0; r < R; ++r) multiply(r, w, segments, sums[r]);
            }
            reader = own[together - 1];
            MUSTAFAR_UNROLL
            for (int i = 0; i < R * together / 4; ++i) folded[i * groups + group] = fold_four(&sums[0][0] + 4 * i);
        }
        alignas(64) float out[R][batch];
        _mm512_store_ps(&out[0][0], fold_parts(fold_halves(folded[0], folded[1]), fold_halves(folded[2], folded[3])));
        for (int r = 0; r < R; ++r) {
            float* row = scores + r * stride + t;
            if (count == batch)
                std::memcpy(row, out[r], sizeof out[r]);
            else
                for (int i = 0; i < count; ++i) row[i] = out[r][i];
        }
    }
}

// 2^x to 2 ulp for x <= 0; 0 below the normal range; NaN stays NaN.
MUSTAFAR_INLINE __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // the second operand wins if it is a NaN
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(exp2_polynomial[0]);
    for (int i = 1; i < 7; ++i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(exp2_polynomial[i]));
    return _mm512_scalef_ps(p, whole);
}

MUSTAFAR_INLINE __mmask16 first_lanes(int count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1);
}

// Calls work(i, lanes) for every 16th i below count, with the lanes that remain of the last ones.
template <class Work>
MUSTAFAR_INLINE void for_vectors(int count, const Work& work) {
    int i = 0;
    for (; i + 16 <= count; i += 16) work(i, static_cast<__mmask16>(0xffff));
    if (i < count) work(i, first_lanes(count - i));
}

[[maybe_unused]] float softmax(float* scores, int count, float scale, float* maximum, float* sum) {
    const float none = -std::numeric_limits<float>::infinity();
    const __m512 scales = _mm512_set1_ps(scale), lowest = _mm512_set1_ps(none);
    __m512 highest = lowest;
    for_vectors(count, [&](int i, __mmask16 lanes) MUSTAFAR_INLINE_LAMBDA {
        const __m512 x = _mm512_mul_ps(_mm512_mask_loadu_ps(lowest, lanes, scores + i), scales);
        highest = _mm512_max_ps(x, highest);
        _mm512_mask_storeu_ps(scores + i, lanes, x);
    });
    const float tile = _mm512_reduce_max_ps(highest);
    const float next = tile > *maximum ? tile : *maximum;
    float factor = 1.0f;
    if (next != *maximum) factor = _mm512_cvtss_f32(exp2_of(_mm512_set1_ps(*maximum - next)));
    const __m512 shift = _mm512_set1_ps(next == none ? 0.0f : next);
    __m512 total = _mm512_setzero_ps();
    for_vectors(count, [&](int i, __mmask16 lanes) MUSTAFAR_INLINE_LAMBDA {
        const __m512 x = _mm512_mask_loadu_ps(lowest, lanes, scores + i);
        const __m512 p = exp2_of(_mm512_sub_ps(x, shift));
        _mm512_mask_storeu_ps(scores + i, lanes, p);
        total = _mm512_mask_add_ps(total, lanes, total, p);
    });
    *maximum = next;
    *sum = *sum * factor + _mm512_reduce_add_ps(total);
    return factor;
}

template <int W>
int count_vector(const uint32_t* bitmap, int tokens) {
#if defined(__AVX512VPOPCNTDQ__)
    __m512i total = _mm512_setzero_si512();
    const int words = tokens * W, whole = words / 16 * 16;
    for (int i = 0; i < whole; i += 16)
        total = _mm512_add_epi32(total, _mm512_popcnt_epi32(_mm512_loadu_si512(bitmap + i)));
    const __m512i last = _mm512_maskz_loadu_epi32(first_lanes(words - whole), bitmap + whole);
    total = _mm512_add_epi32(total, _mm512_popcnt_epi32(last));
    return _mm512_reduce_add_epi32(total);
#else
    return count_bits<W>(bitmap, tokens);
#endif
}

#if defined(__AVX512VBMI2__)
constexpr int packed_channels = 32;  // of a 16-bit dtype at once

MUSTAFAR_INLINE void pack16(const uint16_t* row, uint32_t bits, uint32_t kept, uint16_t* values) {
    _mm512_mask_storeu_epi16(values, _bzhi_u32(~0u, kept), compress_lanes(bits, _mm512_maskz_loadu_epi16(bits, row)));
}
MUSTAFAR_INLINE void unpack16(const uint16_t* values, uint32_t bits, uint32_t valid, uint16_t* row) {
    _mm512_mask_storeu_epi16(row, valid, expand16(values, bits));
}
#else
constexpr int packed_channels = 16;

MUSTAFAR_INLINE void pack16(const uint16_t* row, uint32_t bits, uint32_t kept, uint16_t* values) {
    const __mmask16 mask = static_cast<__mmask16>(bits);
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
    _mm256_mask_storeu_epi16(values, static_cast<__mmask16>(_bzhi_u32(~0u, kept)),
                             _mm512_cvtepi32_epi16(compress_lanes(mask, x)));
}
MUSTAFAR_INLINE void unpack16(const uint16_t* values, uint32_t bits, uint32_t valid, uint16_t* row) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    const __m512 expanded = expand_lanes(static_cast<__mmask16>(bits), _mm512_castsi512_ps(x));
    _mm256_mask_storeu_epi16(row, static_cast<__mmask16>(valid), _mm512_cvtepi32_epi16(_mm512_castps_si512(expanded)));
}
#endif

template <class T, int W>
int pack_vector(const void* source, const uint32_t* bitmap, void* target) {
    using Bits = typename T::Bits;
    const Bits* row = static_cast<const Bits*>(source);
    Bits* values = static_cast<Bits*>(target);
    int count = 0;
    for (int w = 0; w < W; ++w) {
        // Compressed in a register and stored under a mask: vpcompress straight to memory is microcoded on some cores.
        if constexpr (sizeof(Bits) == 4) {
            for (int half = 0; half < 2; ++half) {
                const __mmask16 bits = static_cast<__mmask16>(bitmap[w] >> 16 * half);
                const int kept = _mm_popcnt_u32(bits);
                const __m512i x = _mm512_maskz_loadu_epi32(bits, row + 32 * w + 16 * half);
                _mm512_mask_storeu_epi32(values + count, first_lanes(kept), compress_lanes(bits, x));
                count += kept;
            }
        } else {
            for (int first = 0; first < 32; first += packed_channels) {
                const uint32_t bits = _bzhi_u32(bitmap[w] >> first, packed_channels);
                const int kept = _mm_popcnt_u32(bits);
                pack16(row + 32 * w + first, bits, static_cast<uint32_t>(kept), values + count);
                count += kept;
            }
        }
    }
    return count;
}

template <class T, int W>
int unpack_vector(const void* source, const uint32_t* bitmap, int head_dim, void* target) {
    using Bits = typename T::Bits;
    const Bits* values = static_cast<const Bits*>(source);
    Bits* row = static_cast<Bits*>(target);
    for (int w = 0; w < W; ++w) {
        const uint32_t bits = bitmap[w], valid = valid_channels(head_dim, w);
        if constexpr (sizeof(Bits) == 4) {
            const Segment x = expand<T>(values, bitmap + w);
            _mm512_mask_storeu_ps(row + 32 * w, static_cast<__mmask16>(valid), x.first);
            _mm512_mask_storeu_ps(row + 32 * w + 16, static_cast<__mmask16>(valid >> 16), x.second);
        } else {
            const Bits* half = values;
            for (int first = 0; first < 32; first += packed_channels) {
                const uint32_t own = _bzhi_u32(bits >> first, packed_channels);
                unpack16(half, own, valid >> first, row + 32 * w + first);
                half += _mm_popcnt_u32(own);
            }
        }
        values += _mm_popcnt_u32(bits);
    }
    return static_cast<int>(values - static_cast<const Bits*>(source));
}

}  // namespace
}  // namespace mustafar
