// AVX-512 kernels that multiply in f32. Packed values are expanded in registers by vpexpand, once for up to eight query
// rows, and the lane sums of 16 scores are taken together by transposition.
#include "cpu/avx512.h"
#include "cpu/kernel_tables.h"

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
                if (w >= First && w < First + Count) out[w - First] = expand<T>(values, bits);
                values += _mm_popcnt_u32(bits);
            }
            next_ = values;
            bitmap_ += W;
        } else {
            for (int i = 0; i < Count; ++i)
                out[i] = load<T>(next_ + 32 * (First + i), First + i == W - 1 ? tail_ : ~0u);
            next_ += stride_;
        }
    }

private:
    const uint32_t* bitmap_;
    const Bits* next_;
    int64_t stride_;
    uint32_t tail_;
};

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
                    const __m512 low = _mm512_loadu_ps(query + (r * W + w) * 32);
                    const __m512 high = _mm512_loadu_ps(query + (r * W + w) * 32 + 16);
                    sum[0][0] = _mm512_fmadd_ps(one[w].low, low, sum[0][0]);
                    sum[1][0] = _mm512_fmadd_ps(two[w].low, low, sum[1][0]);
                    sum[0][1] = _mm512_fmadd_ps(one[w].high, high, sum[0][1]);
                    sum[1][1] = _mm512_fmadd_ps(two[w].high, high, sum[1][1]);
                }
                sums[r][0] = _mm512_add_ps(sum[0][0], sum[0][1]);
                sums[r][1] = _mm512_add_ps(sum[1][0], sum[1][1]);
            }
        });
    });
}

template <class T, int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        // As many segments at once as fit 16 accumulators; the others in further passes over the block.
        constexpr int most = 8 / R, C = most < W ? most : W;
        for_passes<W, C>([&]<int First, int Skip>() {
            Segment total[R][C];
            float* out = sums + first * 32 * W + 32 * First;
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c)
                    total[r][c] = {_mm512_loadu_ps(out + r * 32 * W + 32 * c),
                                   _mm512_loadu_ps(out + r * 32 * W + 32 * c + 16)};
            Reader<T, W, Packed> reader(run);
            for (int t = 0; t < run.tokens; ++t) {
                Segment token[C];
                reader.template read<First, C>(token);
                for (int r = 0; r < R; ++r) {
                    const __m512 weight = _mm512_set1_ps(weights[(first + r) * stride + t]);
                    for (int c = 0; c < C; ++c) {
                        total[r][c].low = _mm512_fmadd_ps(weight, token[c].low, total[r][c].low);
                        total[r][c].high = _mm512_fmadd_ps(weight, token[c].high, total[r][c].high);
                    }
                }
            }
            for (int r = 0; r < R; ++r)
                for (int c = Skip; c < C; ++c) {
                    _mm512_storeu_ps(out + r * 32 * W + 32 * c, total[r][c].low);
                    _mm512_storeu_ps(out + r * 32 * W + 32 * c + 16, total[r][c].high);
                }
        });
    });
}

struct Tables {
    template <class T, int W>
    static constexpr Kernels of = {
        .select = select_row<T>,
        .pack = pack_vector<T, W>,
        .unpack = unpack_vector<T, W>,
        .count = count_vector<W>,
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

const Kernels& avx512_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
