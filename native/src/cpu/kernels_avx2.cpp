// AVX2 kernels: a block is first unpacked into a dense scratch in the first-level cache, eight channels at a time by a
// shuffle that a bitmap byte selects, then read as dense tokens.
#include <immintrin.h>

#include <array>
#include <limits>

#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

#define MUSTAFAR_INLINE [[gnu::always_inline]] inline

struct Shuffles {
    // From packed values to the channels of a bitmap byte.
    alignas(64) uint8_t bytes[256][16];  // for pshufb on 16-bit values; 0x80 gives zero
    alignas(64) uint32_t lanes[256][8];  // for vpermd on 32-bit values
    alignas(64) uint32_t masks[256][8];  // all ones where the channel is kept
    // The way back.
    alignas(64) uint8_t packed_bytes[256][16];
    alignas(64) uint32_t packed_lanes[256][8];
};

constexpr Shuffles make_shuffles() {
    Shuffles table{};
    for (unsigned byte = 0; byte < 256; ++byte) {
        unsigned next = 0;
        for (unsigned c = 0; c < 8; ++c) {
            const bool kept = (byte >> c & 1) != 0;
            table.bytes[byte][2 * c] = static_cast<uint8_t>(kept ? 2 * next : 0x80);
            table.bytes[byte][2 * c + 1] = static_cast<uint8_t>(kept ? 2 * next + 1 : 0x80);
            table.lanes[byte][c] = next;
            table.masks[byte][c] = kept ? ~0u : 0u;
            if (!kept) continue;
            table.packed_bytes[byte][2 * next] = static_cast<uint8_t>(2 * c);
            table.packed_bytes[byte][2 * next + 1] = static_cast<uint8_t>(2 * c + 1);
            table.packed_lanes[byte][next++] = c;
        }
    }
    return table;
}

constexpr Shuffles shuffles = make_shuffles();

// One token's packed values to 32 * W channels. Reads at most 32 bytes past the values.
template <class T, int W>
MUSTAFAR_INLINE const typename T::Bits* spread(const typename T::Bits* values, const uint32_t* bitmap,
                                               typename T::Bits* row) {
    for (int w = 0; w < W; ++w) {
        const uint32_t bits = bitmap[w];
        const typename T::Bits* next = values;
        for (int i = 0; i < 4; ++i) {
            const unsigned byte = bits >> 8 * i & 0xffu;
            typename T::Bits* target = row + 32 * w + 8 * i;
            if constexpr (sizeof(typename T::Bits) == 2) {
                const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(next));
                const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(shuffles.bytes[byte]));
                _mm_store_si128(reinterpret_cast<__m128i*>(target), _mm_shuffle_epi8(x, shuffle));
            } else {
                const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
                const __m256i lanes = _mm256_load_si256(reinterpret_cast<const __m256i*>(shuffles.lanes[byte]));
                const __m256i mask = _mm256_load_si256(reinterpret_cast<const __m256i*>(shuffles.masks[byte]));
                _mm256_store_si256(reinterpret_cast<__m256i*>(target),
                                   _mm256_and_si256(_mm256_permutevar8x32_epi32(x, lanes), mask));
            }
            next += _mm_popcnt_u32(byte);
        }
        values += _mm_popcnt_u32(bits);  // a shorter way to the next word than by way of next
    }
    return values;
}

template <class T>
MUSTAFAR_INLINE __m256 load8(const typename T::Bits* row);

template <>
MUSTAFAR_INLINE __m256 load8<F32>(const uint32_t* row) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row));
}
template <>
MUSTAFAR_INLINE __m256 load8<F16>(const uint16_t* row) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
}
template <>
MUSTAFAR_INLINE __m256 load8<BF16>(const uint16_t* row) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

// Lane i of the result is the sum of all lanes of x[i].
MUSTAFAR_INLINE __m256 sum_each_of_8(const __m256* x) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// A run as rows of `octets` groups of 8 channels. head_dim is a multiple of 8, so dense rows are read in place.
template <class T, int W, bool Packed>
class Rows {
public:
    using Bits = typename T::Bits;
    MUSTAFAR_INLINE explicit Rows(const TokenRun& run) {
        if constexpr (Packed) {
            const Bits* values = static_cast<const Bits*>(run.data);
            for (int t = 0; t < run.tokens; ++t)
                values = spread<T, W>(values, run.bitmap + t * W, scratch_.data() + t * 32 * W);
            first_ = scratch_.data();
            stride_ = 32 * W;
        } else {
            first_ = static_cast<const Bits*>(run.data);
            stride_ = run.row_bytes / static_cast<int64_t>(sizeof(Bits));
        }
        octets_ = run.head_dim / 8;
    }
    MUSTAFAR_INLINE const Bits* row(int t) const { return first_ + t * stride_; }
    MUSTAFAR_INLINE int octets() const { return octets_; }

private:
    alignas(64) std::array<Bits, Packed ? block_tokens * 32 * W : 1> scratch_;
    const Bits* first_;
    int64_t stride_;
    int octets_;
};

// Eight scores at a time, of R rows and 8 / R tokens side by side: that many sums at once hide the latency of a product.
template <class T, int R, class Tokens>
MUSTAFAR_INLINE void score_rows(const Tokens& tokens, int count, const float* query, int width, float* scores,
                                int64_t stride) {
    constexpr int P = 8 / R;
    for (int t = 0; t < count; t += P) {
        const typename T::Bits* row[P];
        for (int p = 0; p < P; ++p) row[p] = tokens.row(t + p < count ? t + p : t);
        __m256 sums[8];
        for (int i = 0; i < 8; ++i) sums[i] = _mm256_setzero_ps();
        for (int c = 0; c < tokens.octets(); ++c) {
            __m256 q[R];
            for (int r = 0; r < R; ++r) q[r] = _mm256_loadu_ps(query + r * width + 8 * c);
            for (int p = 0; p < P; ++p) {
                const __m256 x = load8<T>(row[p] + 8 * c);
                for (int r = 0; r < R; ++r) sums[r * P + p] = _mm256_fmadd_ps(x, q[r], sums[r * P + p]);
            }
        }
        alignas(32) float out[8];
        _mm256_store_ps(out, sum_each_of_8(sums));
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P && t + p < count; ++p) scores[r * stride + t + p] = out[r * P + p];
    }
}

template <class T, int W, bool Packed>
void scores(const TokenRun& run, const void* prepared, int rows, float* scores, int64_t stride) {
    const Rows<T, W, Packed> tokens(run);
    for_row_chunks<4>(rows, [&]<int R>(int first) {
        score_rows<T, R>(tokens, run.tokens, static_cast<const float*>(prepared) + first * 32 * W, 32 * W,
                         scores + first * stride, stride);
    });
}

// Octets first ... first + 8 / R - 1 of the sums of R rows, without the first `skip` of them.
template <class T, int R, class Tokens>
MUSTAFAR_INLINE void add_pass(const Tokens& tokens, int count, int first, int skip, const float* weights,
                              int64_t stride, float* sums, int width) {
    constexpr int C = 8 / R;
    __m256 total[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) total[r][c] = _mm256_setzero_ps();
    for (int t = 0; t < count; ++t) {
        const auto* row = tokens.row(t) + 8 * first;
        __m256 x[C];
        for (int c = 0; c < C; ++c) x[c] = load8<T>(row + 8 * c);
        for (int r = 0; r < R; ++r) {
            const __m256 weight = _mm256_broadcast_ss(weights + r * stride + t);
            for (int c = 0; c < C; ++c) total[r][c] = _mm256_fmadd_ps(weight, x[c], total[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            float* out = sums + r * width + 8 * (first + c);
            if (c >= skip) _mm256_storeu_ps(out, _mm256_add_ps(total[r][c], _mm256_loadu_ps(out)));
        }
}

template <class T, int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    const Rows<T, W, Packed> tokens(run);
    for_row_chunks<4>(rows, [&]<int R>(int first) {
        // 8 accumulators; a last pass goes over some octets again rather than past the end.
        constexpr int C = 8 / R;
        for (int octet = 0; octet < tokens.octets(); octet += C) {
            const int begin = octet < tokens.octets() - C ? octet : tokens.octets() - C;
            add_pass<T, R>(tokens, run.tokens, begin, octet - begin, weights + first * stride, stride,
                           sums + first * 32 * W, 32 * W);
        }
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

// Eight channels at a time are put together by a shuffle and stored whole, so the values are built in a buffer.
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
                const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(shuffles.packed_bytes[byte]));
                const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(octet));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(next), _mm_shuffle_epi8(x, shuffle));
            } else {
                const __m256i lanes = _mm256_load_si256(reinterpret_cast<const __m256i*>(shuffles.packed_lanes[byte]));
                const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(octet));
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
    const Bits* values = static_cast<const Bits*>(source);
    alignas(64) Bits row[32 * W];
    const int count = static_cast<int>(spread<T, W>(values, bitmap, row) - values);
    std::memcpy(target, row, static_cast<size_t>(head_dim) * sizeof(Bits));
    return count;
}

struct Tables {
    template <class T, int W>
    static constexpr Kernels of = {
        .select = select_row<T>,
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
