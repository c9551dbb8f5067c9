// The inner loops of the CPU back end, one table per (variant, dtype, bitmap words per token).
#pragma once

#include <cstdint>

#include "core/format.h"

namespace mustafar {

// At most one block of consecutive tokens of one KV head, keys or values, compressed or dense.
struct TokenRun {
    const void* data;        // packed: the first token's first value; dense: the first token's row
    const uint32_t* bitmap;  // packed: [tokens][words]; dense: null
    int64_t row_bytes;       // dense: bytes from token to token
    int head_dim;
    int tokens;  // 0 ... block_tokens
};

// Rows are query rows of one KV head (group * queries). A padded row has 32 * words channels.
struct Kernels {
    using Select = void (*)(const char* const* rows, const float* importance, int tokens, int head_dim, int keep,
                            uint32_t* bitmap);
    // Bits of the `keep` channels of largest magnitude of each row or, with an importance, of largest score; ties go to the
    // lower channel.
    Select select;
    // Bits of the elements that a balanced pattern keeps, `keep` of each unit (5 ... 8), of up to four tokens' rows.
    Select balance_keys, balance_values;
    // Packs the row's selected channels at values; returns their number. Writes nothing past them.
    int (*pack)(const void* row, const uint32_t* bitmap, void* values);
    // The reverse; reads at most MUSTAFAR_PAGE_PADDING bytes past the values. Returns their number.
    int (*unpack)(const void* values, const uint32_t* bitmap, int head_dim, void* row);
    // Set bits of a bitmap of `tokens` rows.
    int (*count)(const uint32_t* bitmap, int tokens);

    // A query row in the form that the score kernels read, padded; 128 * words bytes.
    void (*prepare_query)(const void* row, int head_dim, void* prepared);
    // scores[r * stride + t] = query row r . token t
    void (*packed_scores)(const TokenRun&, const void* prepared, int rows, float* scores, int64_t stride);
    void (*dense_scores)(const TokenRun&, const void* prepared, int rows, float* scores, int64_t stride);
    // sums[r][channel] += weights[r * stride + t] * token t; padded rows
    void (*packed_sum)(const TokenRun&, const float* weights, int64_t stride, int rows, float* sums);
    void (*dense_sum)(const TokenRun&, const float* weights, int64_t stride, int rows, float* sums);
    // Output row from a padded f32 row times factor.
    void (*finish)(const float* sums, float factor, int head_dim, void* row);

    // One row of an online softmax over base 2: with maximum = max(*maximum, max scores * scale), turns scores into
    // 2^(score * scale - maximum), stores the new maximum, adds to *sum (first scaled to it) and returns the factor
    // that rescales what was summed under the old maximum. Scores of -infinity have no weight.
    float (*softmax)(float* scores, int count, float scale, float* maximum, float* sum);
    // values[i] *= factor
    void (*rescale)(float* values, int count, float factor);
};

const Kernels& scalar_kernels(int32_t dtype, int words);
#if defined(__x86_64__)
const Kernels& avx2_kernels(int32_t dtype, int words);
const Kernels& avx512core_kernels(int32_t dtype, int words);
const Kernels& avx512_kernels(int32_t dtype, int words);
const Kernels& avx512bf16_kernels(int32_t dtype, int words);
#elif defined(__aarch64__)
const Kernels& neon_kernels(int32_t dtype, int words);
#endif

// The table for a context's variant; throws Error if the CPU does not support it.
const Kernels& kernels(int32_t variant, const mustafar_format& format);

}  // namespace mustafar
