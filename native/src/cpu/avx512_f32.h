// AVX-512 kernels that multiply in f32. Packed values are expanded in registers, once for up to eight query rows, and the
// lane sums of 16 scores are taken together by transposition. As avx512.h, compiled for each set of extensions.
#pragma once

#include "cpu/avx512.h"
#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/select.h"

namespace mustafar {
namespace {

// Reads the tokens of a run one after another, segment by segment.
template <class T, int W, bool Packed>
class Reader {
public:
    using Bits = typename T::Bits;
    MUSTAFAR_INLINE explicit Reader(const TokenRun& run)
        : bitmap_(run.bitmap), next_(static_cast<const Bits*>(run.data)),
          stride_(run.row_bytes / static_cast<int64_t>(sizeof(Bits))), tail_(valid_channels(run.head_dim, W - 1)) {}

    // Segments First ... First + Count - 1 of the next token.
    template <int First, int Count>
    MUSTAFAR_INLINE void read(Segment* out) {
        if constexpr (Packed) {
            const Bits* values = next_;
            for (int w = 0; w < W; ++w) {
                const uint32_t bits = bitmap_[w];
                if (w % 2 == 0 || sizeof(Bits) == 4) prefetch_ahead(values);
                if (w >= First && w < First + Count) out[w - First] = expand<T>(values, bits);
                values += _mm_popcnt_u32(bits);
            }
            next_ = values;
            bitmap_ += W;
        } else {
            for (int i = 0; i < Count; ++i) {
                const Bits* row = next_ + 32 * (First + i);
                prefetch_ahead(row);
                if (sizeof(Bits) == 4) prefetch_ahead(row + 16);
                out[i] = W == 3 && First + i == 2 ? load<T>(row, tail_) : load<T>(row);  // head_dim 80 and 96
            }
            next_ += stride_;
        }
    }

private:
    const uint32_t* bitmap_;
    const Bits* next_;
    int64_t stride_;
    uint32_t tail_;
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
        Reader<T, W, Packed> reader(run);
        for_scores<R>(run.tokens, scores + first * stride, stride, [&](bool both, __m512(*sums)[2]) {
            Segment one[W], two[W] = {};
            reader.template read<0, W>(one);
            if (both) reader.template read<0, W>(two);
            for (int r = 0; r < R; ++r) {
                __m512 sum[2][2] = {};  // two chains per token hide the latency
                for (int w = 0; w < W; ++w) {
                    const __m512 x = _mm512_loadu_ps(query + (r * W + w) * 32);
                    const __m512 y = _mm512_loadu_ps(query + (r * W + w) * 32 + 16);
                    sum[0][0] = _mm512_fmadd_ps(one[w].first, x, sum[0][0]);
                    sum[1][0] = _mm512_fmadd_ps(two[w].first, x, sum[1][0]);
                    sum[0][1] = _mm512_fmadd_ps(one[w].second, y, sum[0][1]);
                    sum[1][1] = _mm512_fmadd_ps(two[w].second, y, sum[1][1]);
                }
                sums[r][0] = _mm512_add_ps(sum[0][0], sum[0][1]);
                sums[r][1] = _mm512_add_ps(sum[1][0], sum[1][1]);
            }
        });
    });
}

// Segments First ... First + Count - 1 of the sums of R rows, without the first Skip of them. It shares no arguments
// with its caller: the compiler would write those to memory with each token.
template <class T, int W, bool Packed, int R, int First, int Count, int Skip>
[[gnu::noinline]] void add_pass(Reader<T, W, Packed> reader, int tokens, const float* weights, int64_t stride,
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
    for (int r = 0; r < R; ++r)
        for (int c = Skip; c < Count; ++c) {
            float* out = sums + (r * W + First + c) * 32;
            const Segment x = in_order<T>(total[r][c]);
            _mm512_storeu_ps(out, _mm512_add_ps(x.first, _mm512_loadu_ps(out)));
            _mm512_storeu_ps(out + 16, _mm512_add_ps(x.second, _mm512_loadu_ps(out + 16)));
        }
}

template <class T, int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        // As many segments at once as fit 16 accumulators; the others in further passes over the block.
        constexpr int most = 8 / R, C = most < W ? most : W;
        for_passes<W, C>([&]<int First, int Skip>() {
            add_pass<T, W, Packed, R, First, C, Skip>(Reader<T, W, Packed>(run), run.tokens, weights + first * stride,
                                                      stride, sums + first * 32 * W);
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
