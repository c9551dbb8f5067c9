// bf16 by vdpbf16ps, which multiplies pairs of bf16 and adds in f32; the other dtypes are AVX-512's own.
#include "cpu/avx512.h"
#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/select.h"

namespace mustafar {
namespace {

MUSTAFAR_INLINE __m512 dot(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// A segment as stored.
struct AsStored {
    using Bits = uint16_t;
    using Segment = __m512i;
    MUSTAFAR_INLINE static Segment expand(const Bits* values, const uint32_t* word) { return expand16(values, *word); }
    MUSTAFAR_INLINE static Segment load(const Bits* row) { return _mm512_loadu_si512(row); }
    MUSTAFAR_INLINE static Segment load(const Bits* row, uint32_t valid) {
        return _mm512_maskz_loadu_epi16(valid, row);
    }
};

// The query stays bf16.
template <int W>
void prepare(const void* source, int head_dim, void* target) {
    for (int w = 0; w < 2 * W; ++w)
        _mm512_storeu_si512(
            static_cast<char*>(target) + 64 * w,
            w < W ? _mm512_maskz_loadu_epi16(valid_channels(head_dim, w), static_cast<const uint16_t*>(source) + 32 * w)
                  : _mm512_setzero_si512());
}

template <int W, bool Packed>
void scores(const TokenRun& run, const void* prepared, int rows, float* scores, int64_t stride) {
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        const char* query = static_cast<const char*>(prepared) + first * 128 * W;
        const auto multiply = [&](int r, int w, const __m512i* tokens, auto& sums) MUSTAFAR_INLINE_LAMBDA {
            const __m512i q = in_register(_mm512_loadu_si512(query + r * 128 * W + 64 * w));
            for (int i = 0; i < int{std::extent_v<std::remove_reference_t<decltype(sums)>>}; ++i)
                sums[i] = dot(sums[i], tokens[i], q);
        };
        find_scores<W, R>(Reader<AsStored, W, Packed>(run), run.tokens, scores + first * stride, stride, multiply);
    });
}

// Two tokens at a time: the channels of both are interleaved, so that each 32-bit lane holds one channel of the pair,
// and multiplied by the pair of weights, rounded to bf16 as dense bf16 attention rounds its probabilities.
template <int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    // Within each 128-bit part, unpack puts channels 0 ... 3 into low and 4 ... 7 into high.
    const __m512i low_first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  high_first = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        constexpr int most = 8 / R, C = most < W ? most : W;
        alignas(64) uint32_t pairs[R][block_tokens / 2];
        const uint32_t lanes = _bzhi_u32(~0u, static_cast<unsigned>(run.tokens));
        for (int r = 0; r < R; ++r) {
            const float* row = weights + (first + r) * stride;
            const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), row);
            const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes >> 16), row + 16);
            _mm512_store_si512(pairs[r], reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
        }
        for_passes<W, C>([&]<int First, int Skip>() {
            __m512 total[R][C][2];
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) total[r][c][0] = total[r][c][1] = _mm512_setzero_ps();
            Reader<AsStored, W, Packed> reader(run);
            for (int t = 0; t < run.tokens; t += 2) {
                __m512i one[C], two[C] = {};
                reader.template read<First, C>(one);
                if (t + 1 < run.tokens) reader.template read<First, C>(two);
                for (int c = 0; c < C; ++c) {
                    const __m512i low = _mm512_unpacklo_epi16(one[c], two[c]),
                                  high = _mm512_unpackhi_epi16(one[c], two[c]);
                    for (int r = 0; r < R; ++r) {
                        const __m512i pair = _mm512_set1_epi32(static_cast<int>(pairs[r][t / 2]));
                        total[r][c][0] = dot(total[r][c][0], low, pair);
                        total[r][c][1] = dot(total[r][c][1], high, pair);
                    }
                }
            }
            float* out = sums + first * 32 * W + 32 * First;
            for (int r = 0; r < R; ++r)
                for (int c = Skip; c < C; ++c) {
                    float* row = out + r * 32 * W + 32 * c;
                    const __m512i low = _mm512_castps_si512(total[r][c][0]), high = _mm512_castps_si512(total[r][c][1]);
                    const __m512 a = _mm512_castsi512_ps(_mm512_permutex2var_epi64(low, low_first, high));
                    const __m512 b = _mm512_castsi512_ps(_mm512_permutex2var_epi64(low, high_first, high));
                    _mm512_storeu_ps(row, _mm512_add_ps(a, _mm512_loadu_ps(row)));
                    _mm512_storeu_ps(row + 16, _mm512_add_ps(b, _mm512_loadu_ps(row + 16)));
                }
        });
    });
}

struct Tables {
    template <class T, int W>
    static constexpr Kernels of = {
        .select = select_rows<T, W>,
        .balance_keys = balance<T, true>,
        .balance_values = balance<T, false>,
        .pack = pack_vector<T, W>,
        .unpack = unpack_vector<T, W>,
        .count = count_vector<W>,
        .prepare_query = prepare<W>,
        .packed_scores = scores<W, true>,
        .dense_scores = scores<W, false>,
        .packed_sum = sum<W, true>,
        .dense_sum = sum<W, false>,
        .finish = finish_row<T>,
        .softmax = softmax,
        .rescale = rescale_row,
    };
};

}  // namespace

const Kernels& avx512bf16_kernels(int32_t dtype, int words) {
    return dtype == MUSTAFAR_DTYPE_BF16 ? table_for<Tables, BF16>(words) : avx512_kernels(dtype, words);
}

}  // namespace mustafar
