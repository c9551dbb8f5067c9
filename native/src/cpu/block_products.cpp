#include "cpu/block_products.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/dense_row.h"
#include "cpu/integers.h"

namespace mustafar {
namespace {

// Tokens of integers, in f32.
class Dequantized {
public:
    Dequantized(const Block& block, const mustafar_format& format, int first, int tokens) {
        dequantize(block, format, first, tokens, rows_, format.head_dim);
        run_ = TokenRun{.data = rows_,
                        .bitmap = nullptr,
                        .row_bytes = int64_t{format.head_dim} * int{sizeof(float)},
                        .head_dim = format.head_dim,
                        .tokens = tokens};
    }
    const TokenRun& run() const { return run_; }

private:
    alignas(64) float rows_[block_tokens * max_head_dim];
    TokenRun run_;
};

}  // namespace

void BlockProducts::prepare_query(const void* row, const float* factors, float* prepared) const {
    if (!has_integers(format_)) return kernels_.prepare_query(row, format_.head_dim, prepared);
    float query[max_head_dim];
    widen_row(format_.dtype, row, format_.head_dim, query);
    const bool finite = std::all_of(query, query + format_.head_dim, [](float x) { return std::isfinite(x); });
    for (int c = 0; c < format_.head_dim; ++c)
        query[c] = !finite              ? std::numeric_limits<float>::quiet_NaN()
                   : factors != nullptr ? query[c] * factors[c]
                                        : query[c];
    f32_.prepare_query(query, format_.head_dim, prepared);
}

// Native values: packed behind a bitmap, or rows as in a dense tensor.
TokenRun BlockProducts::run(const Block& block, int first, int tokens) const {
    const int element = element_bytes(format_.dtype);
    const bool packed = block.bitmap != nullptr;
    const int64_t skipped = packed ? kernels_.count(block.bitmap, first) : int64_t{first} * format_.head_dim;
    return TokenRun{.data = block.values + skipped * element,
                    .bitmap = packed ? block.bitmap + first * bitmap_words(format_.head_dim) : nullptr,
                    .row_bytes = packed ? 0 : int64_t{format_.head_dim} * element,
                    .head_dim = format_.head_dim,
                    .tokens = tokens};
}

void BlockProducts::scores(const Block& block, int first, int tokens, const float* prepared, int rows, float* scores,
                           int64_t stride) const {
    if (has_integers(format_)) {
        const Dequantized dense(block, format_, first, tokens);
        return f32_.dense_scores(dense.run(), prepared, rows, scores, stride);
    }
    const TokenRun tokens_run = run(block, first, tokens);
    (keeps_all(format_) ? kernels_.dense_scores : kernels_.packed_scores)(tokens_run, prepared, rows, scores, stride);
}

void BlockProducts::sum(const Block& block, int first, int tokens, const float* weights, int64_t stride, int rows,
                        float* sums) const {
    if (has_integers(format_)) {
        const Dequantized dense(block, format_, first, tokens);
        return f32_.dense_sum(dense.run(), weights, stride, rows, sums);
    }
    const TokenRun tokens_run = run(block, first, tokens);
    (keeps_all(format_) ? kernels_.dense_sum : kernels_.packed_sum)(tokens_run, weights, stride, rows, sums);
}

}  // namespace mustafar
