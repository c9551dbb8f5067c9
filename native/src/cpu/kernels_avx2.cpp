// AVX2 kernels. Packed values are expanded in registers, eight channels at a time by a shuffle that a bitmap byte
// selects, once for up to eight query rows, and multiplied immediately: the two keep different units of a core busy.
#include <immintrin.h>

#include <bit>
#include <limits>
#include <type_traits>

#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"
#include "cpu/row.h"
#include "cpu/select.h"

namespace mustafar {
namespace {

// GCC does not unroll such loops by itself. With a sanitizer, unrolled loops take the compiler many minutes.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define MUSTAFAR_UNROLL _Pragma("GCC unroll 32")
#else
#define MUSTAFAR_UNROLL
#endif

// One shuffle per bitmap byte.
template <class Element, int Count>
struct Shuffles {
    alignas(64) Element of[256][Count];
};

// Kept channels before a channel.
constexpr unsigned rank(unsigned byte, unsigned channel) {
    return static_cast<unsigned>(std::popcount(byte & ((1u << channel) - 1)));
}

// Calls set(entry, byte, channel) for each kept channel of each bitmap byte; the others keep their initial value.
template <class Element, int Count, class Set>
constexpr Shuffles<Element, Count> make_shuffles(Element fill, const Set& set) {
    Shuffles<Element, Count> table{};
    for (unsigned byte = 0; byte < 256; ++byte) {
        for (Element& element : table.of[byte]) element = fill;
        for (unsigned c = 0; c < 8; ++c)
            if (byte >> c & 1) set(table.of[byte], byte, c);
    }
    return table;
}

// From packed values to channels. For pshufb on 16-bit values; 0x80 gives zero.
constexpr auto spread_halves = make_shuffles<uint8_t, 16>(0x80, [](uint8_t* entry, unsigned byte, unsigned c) {
    for (unsigned i = 0; i < 2; ++i) entry[2 * c + i] = static_cast<uint8_t>(2 * rank(byte, c) + i);
});
// For pshufb on the same 16-bit values in both halves of a register: each to the upper half of 32 bits.
constexpr auto spread_upper_halves = make_shuffles<uint8_t, 32>(0x80, [](uint8_t* entry, unsigned byte, unsigned c) {
    for (unsigned i = 0; i < 2; ++i) entry[4 * c + 2 + i] = static_cast<uint8_t>(2 * rank(byte, c) + i);
});
// For pshufb on 32-bit values, where each half of a register has those of four channels.
constexpr auto spread_words = make_shuffles<uint8_t, 32>(0x80, [](uint8_t* entry, unsigned byte, unsigned c) {
    const unsigned place = rank(byte, c) - (c < 4 ? 0 : rank(byte, 4));
    for (unsigned i = 0; i < 4; ++i) entry[4 * c + i] = static_cast<uint8_t>(4 * place + i);
});

// The reverse.
constexpr auto pack_halves = make_shuffles<uint8_t, 16>(0, [](uint8_t* entry, unsigned byte, unsigned c) {
    for (unsigned i = 0; i < 2; ++i) entry[2 * rank(byte, c) + i] = static_cast<uint8_t>(2 * c + i);
});
constexpr auto pack_words = make_shuffles<uint8_t, 8>(
    0, [](uint8_t* entry, unsigned byte, unsigned c) { entry[rank(byte, c)] = static_cast<uint8_t>(c); });

MUSTAFAR_INLINE __m128i load16(const void* address) {
    return _mm_loadu_si128(static_cast<const __m128i*>(address));
}

MUSTAFAR_INLINE __m128i load8_bytes(const void* address) {
    return _mm_loadl_epi64(static_cast<const __m128i*>(address));
}

// The channels of one bitmap byte, as they are stored and in f32. Reads at most 32 bytes.
MUSTAFAR_INLINE __m128i spread16(const uint16_t* values, uint64_t byte) {
    return _mm_shuffle_epi8(load16(values), load16(spread_halves.of[byte]));
}
MUSTAFAR_INLINE __m256 spread32(const uint32_t* values, uint64_t byte) {
    const __m256i shuffle = _mm256_load_si256(reinterpret_cast<const __m256i*>(spread_words.of[byte]));
    const __m128i low = load16(values), high = load16(values + _mm_popcnt_u64(byte & 15));
    const __m256i x = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(x, shuffle));
}
template <class T>
MUSTAFAR_INLINE __m256 expand8(const typename T::Bits* values, uint64_t byte) {
    if constexpr (std::is_same_v<T, F32>) {
        return spread32(values, byte);
    } else if constexpr (std::is_same_v<T, F16>) {
        return _mm256_cvtph_ps(spread16(values, byte));
    } else {
        const __m256i places = _mm256_load_si256(reinterpret_cast<const __m256i*>(spread_upper_halves.of[byte]));
        return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(values)), places));
    }
}

template <class T>
MUSTAFAR_INLINE __m256 load8(const typename T::Bits* row);

template <>
MUSTAFAR_INLINE __m256 load8<F32>(const uint32_t* row) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row));
}
template <>
MUSTAFAR_INLINE __m256 load8<F16>(const uint16_t* row) {
    return _mm256_cvtph_ps(load16(row));
}
template <>
MUSTAFAR_INLINE __m256 load8<BF16>(const uint16_t* row) {
    return expand8<BF16>(row, 0xff);
}

// Lane i of the result is the sum of all lanes of x[i]. Each step adds halves of what is to be summed: shuffles and sums,
// which cost less than horizontal sums.
MUSTAFAR_INLINE __m256 sum_each_of_8(const __m256* x) {
    const auto pairs = [](__m256 a, __m256 b) MUSTAFAR_INLINE_LAMBDA {
        return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    };
    const auto fours = [](__m256 a, __m256 b) MUSTAFAR_INLINE_LAMBDA {
        return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    };
    const __m256 a = fours(pairs(x[0], x[1]), pairs(x[2], x[3])), b = fours(pairs(x[4], x[5]), pairs(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// The tokens of a run. For dense ones no more than head_dim channels are read: memory may end there.
template <class T, int W, bool Packed>
struct Tokens {
    using Bits = typename T::Bits;
    using Piece = std::conditional_t<W % 2 == 0, uint64_t, uint32_t>;  // bitmaps are read in pieces of this size
    static constexpr int piece_octets = sizeof(Piece), pieces = 4 * W / piece_octets;

    const Bits* values;
    const uint32_t* bitmap;  // of packed ones
    int64_t stride;          // of dense ones
    int count, octets;       // head_dim is a whole number of octets

    explicit Tokens(const TokenRun& run)
        : values(static_cast<const Bits*>(run.data)), bitmap(run.bitmap),
          stride(run.row_bytes / static_cast<int64_t>(sizeof(Bits))), count(run.tokens),
          octets(W == 3 && !Packed ? run.head_dim / 8 : 4 * W) {}

    // Bitmap bytes of a token from an octet on, as many as Word holds.
    template <class Word>
    MUSTAFAR_INLINE uint64_t bits(int token, int octet) const {
        Word word = 0;
        if constexpr (Packed)
            std::memcpy(&word, reinterpret_cast<const uint8_t*>(bitmap + token * W) + octet, sizeof word);
        return word;
    }
    // Places of a piece's, or an octet's, channels among the values.
    MUSTAFAR_INLINE static int64_t piece_values(uint64_t bits) { return Packed ? popcount(bits) : 8 * piece_octets; }
    MUSTAFAR_INLINE static int64_t octet_values(uint64_t byte) { return Packed ? popcount(byte) : 8; }
    MUSTAFAR_INLINE int64_t token_values(int token) const {
        if constexpr (!Packed) return stride;
        int64_t total = 0;
        for (int i = 0; i < pieces; ++i) total += popcount(bits<Piece>(token, i * piece_octets));
        return total;
    }
    // The channels of an octet in f32.
    MUSTAFAR_INLINE __m256 octet(int64_t place, uint64_t byte) const {
        if constexpr (Packed)
            return expand8<T>(values + place, byte);
        else
            return load8<T>(values + place);
    }

private:
    MUSTAFAR_INLINE static int64_t popcount(uint64_t bits) { return static_cast<int64_t>(_mm_popcnt_u64(bits)); }
};

// Scores of R rows and P tokens at once: sums[r][p] are vectors whose lanes add up to the scores. place: where the
// tokens' values start and end.
template <class T, int W, bool Packed, int R, int P>
MUSTAFAR_INLINE void score_side_by_side(const Tokens<T, W, Packed>& tokens, const int (&token)[P], int64_t (&place)[P],
                                        const float* query, __m256 (&sums)[R][P]) {
    using Source = Tokens<T, W, Packed>;
    constexpr int chains = 8 / (R * P);  // eight sums at once hide the latency of a product
    __m256 sum[R][P][chains];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            for (int k = 0; k < chains; ++k) sum[r][p][k] = _mm256_setzero_ps();
    MUSTAFAR_UNROLL
    for (int piece = 0; piece < Source::pieces; ++piece) {
        const int first = piece * Source::piece_octets;
        uint64_t bits[P];
        int64_t next[P];
        for (int p = 0; p < P; ++p) {
            bits[p] = tokens.template bits<typename Source::Piece>(token[p], first);
            next[p] = place[p];
            place[p] += Source::piece_values(bits[p]);
        }
        MUSTAFAR_UNROLL
        for (int i = 0; i < Source::piece_octets; ++i) {
            if (!Packed && W == 3 && first + i >= tokens.octets) break;
            __m256 x[P];
            for (int p = 0; p < P; ++p) {
                const uint64_t byte = bits[p] >> 8 * i & 0xffu;
                x[p] = tokens.octet(next[p], byte);
                next[p] += Source::octet_values(byte);
            }
            for (int r = 0; r < R; ++r) {
                const __m256 q = _mm256_loadu_ps(query + r * 32 * W + 8 * (first + i));
                for (int p = 0; p < P; ++p) sum[r][p][i % chains] = _mm256_fmadd_ps(x[p], q, sum[r][p][i % chains]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
            sums[r][p] = sum[r][p][0];
            for (int k = 1; k < chains; ++k) sums[r][p] = _mm256_add_ps(sums[r][p], sum[r][p][k]);
        }
}

// Scores of R rows, eight at a time. It shares no arguments with its caller: the compiler would load those from memory
// with each token.
template <class T, int W, bool Packed, int R>
[[gnu::noinline]] void score_rows(Tokens<T, W, Packed> tokens, const float* query, float* scores, int64_t stride) {
    constexpr int batch = 8 / R;  // tokens
    // At once, so that each part of a query is loaded once for all of them; packed ones take more registers.
    constexpr int P = Packed && batch > 2 ? 2 : batch;
    int64_t start = 0;
    for (int t = 0; t < tokens.count; t += batch) {
        alignas(32) float partial[R][batch][8] = {};
        for (int i = 0; i < batch && t + i < tokens.count; i += P) {
            int token[P];
            int64_t place[P];
            for (int p = 0; p < P; ++p) {
                const bool exists = t + i + p < tokens.count;
                token[p] = exists ? t + i + p : t + i;
                place[p] = p > 0 && exists ? place[p - 1] + tokens.token_values(token[p - 1]) : start;
            }
            __m256 sums[R][P];
            score_side_by_side<T, W, Packed, R, P>(tokens, token, place, query, sums);
            start = Packed ? place[P - 1] : start + P * tokens.stride;
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) _mm256_store_ps(partial[r][i + p], sums[r][p]);
        }
        __m256 sums[8];
        for (int i = 0; i < 8; ++i) sums[i] = _mm256_load_ps(partial[i / batch][i % batch]);
        alignas(32) float out[R][batch];
        _mm256_store_ps(&out[0][0], sum_each_of_8(sums));
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < batch && t + i < tokens.count; ++i) scores[r * stride + t + i] = out[r][i];
    }
}

template <class T, int W, bool Packed>
void scores(const TokenRun& run, const void* prepared, int rows, float* scores, int64_t stride) {
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        score_rows<T, W, Packed, R>(Tokens<T, W, Packed>(run), static_cast<const float*>(prepared) + first * 32 * W,
                                    scores + first * stride, stride);
    });
}

// Adds to the sums of R rows from an octet on, C octets at a time while there are that many; returns the first octet
// that is left. places: where each token's values of that octet start, before and after.
template <class T, int W, bool Packed, int R, int C>
[[gnu::noinline]] int add_octets(Tokens<T, W, Packed> tokens, uint32_t* places, int octet, const float* weights,
                                 int64_t stride, float* sums) {
    using Source = Tokens<T, W, Packed>;
    using Word = std::conditional_t<C == 2, uint16_t, std::conditional_t<C == 4, uint32_t, uint64_t>>;
    for (; octet + C <= tokens.octets; octet += C) {
        __m256 total[R][C];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) total[r][c] = _mm256_setzero_ps();
        for (int t = 0; t < tokens.count; ++t) {
            const uint64_t bits = tokens.template bits<Word>(t, octet);
            int64_t place = Packed ? places[t] : t * tokens.stride + 8 * octet;
            __m256 x[C];
            for (int c = 0; c < C; ++c) {
                const uint64_t byte = bits >> 8 * c & 0xffu;
                x[c] = tokens.octet(place, byte);
                place += Source::octet_values(byte);
            }
            if constexpr (Packed) places[t] = static_cast<uint32_t>(place);
            for (int r = 0; r < R; ++r) {
                const __m256 weight = _mm256_broadcast_ss(weights + r * stride + t);
                for (int c = 0; c < C; ++c) total[r][c] = _mm256_fmadd_ps(weight, x[c], total[r][c]);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) {
                float* const out = sums + r * 32 * W + 8 * (octet + c);
                _mm256_storeu_ps(out, _mm256_add_ps(total[r][c], _mm256_loadu_ps(out)));
            }
    }
    return octet;
}

template <class T, int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    const Tokens<T, W, Packed> tokens(run);
    if constexpr (Packed)
        if (rows > 4) {
            // Expanded once for all chunks of rows, as many tokens at a time as fit the first-level cache.
            constexpr int most = W == 8 ? 8 : 16;
            alignas(64) float channels[most][32 * W];
            int64_t place = 0;
            for (int t = 0; t < tokens.count; ++t) {
                MUSTAFAR_UNROLL
                for (int octet = 0; octet < 4 * W; ++octet) {
                    const uint64_t byte = tokens.template bits<uint8_t>(t, octet);
                    _mm256_store_ps(channels[t % most] + 8 * octet, tokens.octet(place, byte));
                    place += tokens.octet_values(byte);
                }
                if (const int count = t % most + 1; count == most || t + 1 == tokens.count)
                    sum<F32, W, false>({channels, nullptr, sizeof channels[0], run.head_dim, count},
                                       weights + t + 1 - count, stride, rows, sums);
            }
            return;
        }
    for_row_chunks<4>(rows, [&]<int R>(int first) {
        uint32_t places[block_tokens];
        if constexpr (Packed)
            for (int64_t t = 0, place = 0; t < tokens.count; ++t) {
                places[t] = static_cast<uint32_t>(place);
                place += tokens.token_values(static_cast<int>(t));
            }
        constexpr int C = 8 / R;  // 8 accumulators
        const float* const own_weights = weights + first * stride;
        float* const own_sums = sums + first * 32 * W;
        const int rest = add_octets<T, W, Packed, R, C>(tokens, places, 0, own_weights, stride, own_sums);
        // Every head_dim has an even number of octets.
        if (W == 3 && C > 2) add_octets<T, W, Packed, R, 2>(tokens, places, rest, own_weights, stride, own_sums);
    });
}

// 2^x to 2 ulp for x <= 0; 0 below 2^-126; NaN stays NaN.
MUSTAFAR_INLINE __m256 exp2_of(__m256 x) {
    const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
    x = _mm256_max_ps(_mm256_set1_ps(-126.0f), x);  // the second operand wins if it is a NaN
    const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 f = _mm256_sub_ps(x, whole);
    __m256 p = _mm256_set1_ps(exp2_polynomial[0]);
    for (int i = 1; i < 7; ++i) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(exp2_polynomial[i]));
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(exponent)));
}

float softmax(float* scores, int count, float scale, float* maximum, float* sum) {
    const float none = -std::numeric_limits<float>::infinity();
    const int whole = count / 8 * 8;
    alignas(32) float last[8] = {none, none, none, none, none, none, none, none};
    for (int i = whole; i < count; ++i) last[i - whole] = scores[i];
    // Calls body with all scores, eight at a time.
    const auto for_scores = [&](const auto& body) {
        for (int i = 0; i < whole; i += 8) body(scores + i);
        if (whole < count) body(last);
    };
    const __m256 scales = _mm256_set1_ps(scale);
    __m256 most = _mm256_set1_ps(none);
    for_scores([&](float* p) {
        const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(p), scales);
        most = _mm256_max_ps(x, most);  // the second operand wins over a NaN, which shows in the sum instead
        _mm256_storeu_ps(p, x);
    });
    const __m128 most4 = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    const __m128 most2 = _mm_max_ps(most4, _mm_movehl_ps(most4, most4));
    const float tile = _mm_cvtss_f32(_mm_max_ss(most2, _mm_movehdup_ps(most2)));
    const float highest = tile > *maximum ? tile : *maximum;
    float factor = 1.0f;
    if (highest != *maximum) factor = _mm256_cvtss_f32(exp2_of(_mm256_set1_ps(*maximum - highest)));
    const __m256 shift = _mm256_set1_ps(highest == none ? 0.0f : highest);
    __m256 total = _mm256_setzero_ps();
    for_scores([&](float* p) {
        const __m256 x = exp2_of(_mm256_sub_ps(_mm256_loadu_ps(p), shift));
        total = _mm256_add_ps(total, x);
        _mm256_storeu_ps(p, x);
    });
    for (int i = whole; i < count; ++i) scores[i] = last[i - whole];
    const __m128 total4 = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
    const __m128 total2 = _mm_add_ps(total4, _mm_movehl_ps(total4, total4));
    *maximum = highest;
    *sum = *sum * factor + _mm_cvtss_f32(_mm_add_ss(total2, _mm_movehdup_ps(total2)));
    return factor;
}

// A shuffle packs eight channels at a time and stores them whole, so the values are built in a buffer.
template <class T, int W>
int pack(const void* source, const uint32_t* bitmap, void* target) {
    using Bits = typename T::Bits;
    const Bits* row = static_cast<const Bits*>(source);
    alignas(64) Bits values[32 * W + 8];
    Bits* next = values;
    for (int w = 0; w < W; ++w)
        for (int i = 0; i < 4; ++i) {
            const unsigned byte = bitmap[w] >> 8 * i & 0xffu;
            const Bits* octet = row + 32 * w + 8 * i;
            if (W == 3 && byte == 0) continue;  // the row of head_dim 80 may end here
            if constexpr (sizeof(Bits) == 2) {
                _mm_storeu_si128(reinterpret_cast<__m128i*>(next),
                                 _mm_shuffle_epi8(load16(octet), load16(pack_halves.of[byte])));
            } else {
                const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(octet));
                const __m256i lanes = _mm256_cvtepu8_epi32(load8_bytes(pack_words.of[byte]));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(next), _mm256_permutevar8x32_epi32(x, lanes));
            }
            next += _mm_popcnt_u32(byte);
        }
    std::memcpy(target, values, static_cast<size_t>(next - values) * sizeof(Bits));
    return static_cast<int>(next - values);
}

template <class T, int W>
int unpack(const void* source, const uint32_t* bitmap, int head_dim, void* target) {
    using Bits = typename T::Bits;
    const Bits* next = static_cast<const Bits*>(source);
    alignas(64) Bits row[32 * W];
    for (int octet = 0; octet < 4 * W; ++octet) {
        const unsigned byte = bitmap[octet / 4] >> octet % 4 * 8 & 0xffu;
        if constexpr (sizeof(Bits) == 2)
            _mm_store_si128(reinterpret_cast<__m128i*>(row + 8 * octet), spread16(next, byte));
        else
            _mm256_store_ps(reinterpret_cast<float*>(row + 8 * octet), spread32(next, byte));
        next += _mm_popcnt_u32(byte);
    }
    std::memcpy(target, row, static_cast<size_t>(head_dim) * sizeof(Bits));
    return static_cast<int>(next - static_cast<const Bits*>(source));
}

struct Tables {
    template <class T, int W>
    static constexpr Kernels of = {
        .select = select_rows<T, W>,
        .balance_keys = balance<T, true>,
        .balance_values = balance<T, false>,
        .pack = pack<T, W>,
        .unpack = unpack<T, W>,
        .count = count_bits<W>,
        .prepare_query = prepare_f32<T, W>,
        .packed_scores = scores<T, W, true>,
        .dense_scores = scores<T, W, false>,
        .packed_sum = sum<T, W, true>,
        .dense_sum = sum<T, W, false>,
        .finish = finish_row<T>,
        .softmax = softmax,
        .rescale = rescale_row,
    };
};

}  // namespace

const Kernels& avx2_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
