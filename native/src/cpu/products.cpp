// The sparse products K q and p V on their own (Mustafar, section 4).
#include "cpu/products.h"

#include <algorithm>
#include <vector>

#include "cpu/block_products.h"
#include "cpu/block_reader.h"
#include "cpu/dense_row.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace mustafar {
namespace {

struct Shape {
    explicit Shape(const mustafar_product& call)
        : product(call), group(call.num_heads / call.num_kv_heads), rows(group * call.num_queries),
          padded(32 * bitmap_words(call.blocks.format.head_dim)), element(element_bytes(call.blocks.format.dtype)),
          blocks(divide_up(call.tokens, block_tokens)) {}

    // Row r of KV head h.
    char* dense_row(int32_t batch, int32_t head, int r) const {
        return row_address(product.dense, batch, head * group + r / product.num_queries, r % product.num_queries,
                           element);
    }
    float* weights_row(int32_t batch, int32_t head, int r) const {
        return reinterpret_cast<float*>(row_address(product.weights, batch, head * group + r / product.num_queries,
                                                    r % product.num_queries, sizeof(float)));
    }
    int block_size(int64_t block) const {
        return static_cast<int>(std::min<int64_t>(block_tokens, product.tokens - block * block_tokens));
    }

    const mustafar_product& product;
    int group, rows, padded, element;
    int64_t blocks;
};

}  // namespace

void key_scores(const mustafar_context& context, const mustafar_product& product) {
    const Shape shape(product);
    const BlockProducts products(context.cpu_variant, product.blocks.format, BlockProducts::Role::keys);
    const int64_t heads = int64_t{product.batch} * product.num_kv_heads;
    if (heads == 0 || shape.rows == 0 || shape.blocks == 0) return;
    const int64_t run = 16, runs = divide_up(shape.blocks, run);  // blocks per item, to prepare the queries rarely
    parallel_for(thread_count(context.num_threads, heads * runs), heads * runs, [&](int64_t item, int) {
        const int32_t b = static_cast<int32_t>(item / runs / product.num_kv_heads);
        const int32_t h = static_cast<int32_t>(item / runs % product.num_kv_heads);
        const int64_t query_floats = products.query_floats() > 0 ? products.query_floats() : shape.padded;
        std::vector<float> prepared(static_cast<size_t>(shape.rows * query_floats));
        const float* const factors =
            product.key_factors == nullptr
                ? nullptr
                : product.key_factors + (int64_t{b} * product.num_kv_heads + h) * product.blocks.format.head_dim;
        for (int r = 0; r < shape.rows; ++r)
            products.prepare_query(shape.dense_row(b, h, r), factors, prepared.data() + r * query_floats);
        const BlockReader reader(product.blocks, product.num_kv_heads, b, h);
        std::vector<float> scores(static_cast<size_t>(shape.rows) * block_tokens);
        for (int64_t block = item % runs * run; block < std::min(shape.blocks, (item % runs + 1) * run); ++block) {
            const int tokens = shape.block_size(block);
            products.scores(reader, block * block_tokens, block * block_tokens + tokens, {}, prepared.data(),
                            shape.rows, scores.data(), block_tokens);
            for (int r = 0; r < shape.rows; ++r)
                for (int t = 0; t < tokens; ++t)
                    shape.weights_row(b, h, r)[block * block_tokens + t] =
                        product.scale * scores[static_cast<size_t>(r) * block_tokens + static_cast<size_t>(t)];
        }
    });
}

void value_sum(const mustafar_context& context, const mustafar_product& product) {
    const Shape shape(product);
    const Kernels& table = kernels(context.cpu_variant, product.blocks.format);
    const BlockProducts products(context.cpu_variant, product.blocks.format, BlockProducts::Role::values);
    const int64_t heads = int64_t{product.batch} * product.num_kv_heads;
    if (heads == 0 || shape.rows == 0) return;
    parallel_for(thread_count(context.num_threads, heads), heads, [&](int64_t item, int) {
        const int32_t b = static_cast<int32_t>(item / product.num_kv_heads);
        const int32_t h = static_cast<int32_t>(item % product.num_kv_heads);
        const BlockReader reader(product.blocks, product.num_kv_heads, b, h);
        std::vector<float> sums(static_cast<size_t>(shape.rows) * static_cast<size_t>(shape.padded));
        std::vector<float> weights(static_cast<size_t>(shape.rows) * block_tokens);
        for (int64_t block = 0; block < shape.blocks; ++block) {
            const int tokens = shape.block_size(block);
            for (int r = 0; r < shape.rows; ++r)
                std::copy_n(shape.weights_row(b, h, r) + block * block_tokens, tokens,
                            weights.data() + int64_t{r} * block_tokens);
            products.sum(reader, block * block_tokens, block * block_tokens + tokens, {}, weights.data(), block_tokens,
                         shape.rows, sums.data());
        }
        for (int r = 0; r < shape.rows; ++r)
            table.finish(sums.data() + int64_t{r} * shape.padded, product.scale, product.blocks.format.head_dim,
                         shape.dense_row(b, h, r));
    });
}

}  // namespace mustafar
