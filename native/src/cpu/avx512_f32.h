// AVX-512 kernels that multiply in f32. Packed values are expanded in registers, once for up to eight query rows, and the
// lane sums of 16 scores are taken together by transposition. As avx512.h, compiled for each set of extensions.
#pragma once

#include "cpu/avx512.h"
#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/select.h"

namespace mustafar {
namespace {

// A segment in f32.
template <class T>
struct Widened {
    using Bits = typename T::Bits;
    using Segment = mustafar::Segment;
    MUSTAFAR_INLINE static Segment expand(const Bits* values, const uint32_t* word) {
        return mustafar::expand<T>(values, word);
    }
    MUSTAFAR_INLINE static Segment load(const Bits* row) { return mustafar::load<T>(row); }
    MUSTAFAR_INLINE static Segment load(const Bits* row, uint32_t valid) { return mustafar::load<T>(row, valid); }
};

// A query in the order of channels in which tokens are widened.
template <class T, int W>
void prepare(const void* source, int head_dim, void* target) {
    const typename T::Bits* row = static_cast<const typename T::Bits*>(source);
    float* prepared = static_cast<float*>(target);
    for (int w = 0; w < W; ++w) {
        const Segment x = load<T>(row + 32 * w, valid_channels(head_dim, w));
        _mm512_storeu_ps(prepared + 32 * w, x.first);
        _mm512_storeu_ps(prepared + 32 * w + 16, x.second);
    }
}

template <class T, int W, bool Packed>
void scores(const TokenRun& run, const void* prepared, int rows, float* scores, int64_t stride) {
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        const float* query = static_cast<const float*>(prepared) + first * 32 * W;
        const auto multiply = [&](int r, int w, const Segment* tokens, auto& sums) MUSTAFAR_INLINE_LAMBDA {
            constexpr int count = std::extent_v<std::remove_reference_t<decltype(sums)>>;
            const __m512 x = in_register(_mm512_loadu_ps(query + (r * W + w) * 32));
            for (int i = 0; i < count; ++i) sums[i] = _mm512_fmadd_ps(tokens[i].first, x, sums[i]);
            const __m512 y = in_register(_mm512_loadu_ps(query + (r * W + w) * 32 + 16));
            for (int i = 0; i < count; ++i) sums[i] = _mm512_fmadd_ps(tokens[i].second, y, sums[i]);
        };
        find_scores<W, R>(Reader<Widened<T>, W, Packed>(run), run.tokens, scores + first * stride, stride, multiply);
    });
}

// Segments First ... First + Count - 1 of the sums of R rows, without the first Skip of them. It shares no arguments
// with its caller: the compiler would write those to memory with each token.
template <class T, int W, bool Packed, int R, int First, int Count, int Skip>
[[gnu::noinline]] void add_pass(Reader<Widened<T>, W, Packed> reader, int tokens, const float* weights, int64_t stride,
                                float* sums) {
    Segment total[R][Count];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < Count; ++c) total[r][c] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int t = 0; t < tokens; ++t) {
        Segment token[Count];
        reader.template read<First, Count>(token);
        for (int r = 0; r < R; ++r) {
            const __m512 weight = _mm512_set1_ps(weights[r * stride + t]);
            for (int c = 0; c < Count; ++c) {
                total[r][c].first = _mm512_fmadd_ps(weight, token[c].first, total[r][c].first);
                total[r][c].second = _mm512_fmadd_ps(weight, token[c].second, total[r][c].second);
            }
        }
    }
    MUSTAFAR_UNROLL
    for (int r = 0; r < R; ++r) {
        MUSTAFAR_UNROLL
        for (int c = Skip; c < Count; ++c) {
            float* out = sums + (r * W + First + c) * 32;
            const Segment x = by_parity<T> ? in_order(total[r][c]) : total[r][c];
            _mm512_storeu_ps(out, _mm512_add_ps(x.first, _mm512_loadu_ps(out)));
            _mm512_storeu_ps(out + 16, _mm512_add_ps(x.second, _mm512_loadu_ps(out + 16)));
        }
    }
}

template <class T, int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        // As many segments at once as fit 16 accumulators; the others in further passes over the block.
        constexpr int most = 8 / R, C = most < W ? most : W;
        for_passes<W, C>([&]<int First, int Skip>() {
            add_pass<T, W, Packed, R, First, C, Skip>(Reader<Widened<T>, W, Packed>(run), run.tokens,
                                                      weights + first * stride, stride, sums + first * 32 * W);
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
        .prepare_query = prepare<T, W>,
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
}  // namespace mustafar
