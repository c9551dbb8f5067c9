#include <algorithm>

#include "calls.h"

namespace mustafar_fuzz {
namespace {

struct Shape {
    explicit Shape(Arguments& from)
        : batch(from.number32(0, 2)), heads(from.number32(0, 2)), tokens(from.number(0, 44)) {}

    int32_t batch, heads;
    int64_t tokens;

    wide blocks() const {
        return times(wide{batch} * heads, tokens / MUSTAFAR_BLOCK_TOKENS + (tokens % MUSTAFAR_BLOCK_TOKENS > 0));
    }
    wide words(const mustafar_format& format) const {
        return times(times(wide{batch} * heads, tokens), bitmap_words(format.head_dim));
    }
};

void decompress(Arguments& from, const mustafar_context& context, const Shape& shape, const mustafar_blocks& blocks,
                const float* factors) {
    const int64_t first = from.number(0, shape.tokens > 0 ? shape.tokens : 0);
    const int64_t rest = shape.tokens > first && first >= 0 ? shape.tokens - first : 0;
    const int64_t count = from.mishap() ? from.number(0, 44) : rest;
    const mustafar_dense target =
        from.dense(shape.batch, shape.heads, count, blocks.format.head_dim, element_bytes(blocks.format.dtype));
    if (from.memory.possible())
        mustafar_decompress(&context, shape.batch, shape.heads, first, count, from.address(&blocks), factors, &target);
}

}  // namespace

void queries(Arguments& from) {
    const int64_t length = from.number(0, 1000);
    const int32_t local_window = from.number32(0, 100), group_size = from.number32(1, 100);
    const int32_t lookahead = from.number32(0, 100);
    const int64_t compressed = mustafar_compressed_tokens(length, lookahead, local_window, group_size);
    if (compressed < 0 || (compressed > length && length >= 0)) __builtin_trap();
    const mustafar_format format = from.format(from.number32(MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS));
    int64_t bytes = 0;
    if (mustafar_block_bytes(from.address(&format), from.address(&bytes)) == MUSTAFAR_STATUS_OK && bytes <= 0)
        __builtin_trap();
    mustafar_limits limits{};
    if (mustafar_get_limits(from.address(&limits)) == MUSTAFAR_STATUS_OK && limits.num_head_dims < 1) __builtin_trap();
    if (mustafar_last_error() == nullptr || mustafar_version() == nullptr) __builtin_trap();
}

void prune(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_format format = from.format(MUSTAFAR_LAYOUT_FIXED);
    const Shape shape(from);
    const mustafar_dense source =
        from.dense(shape.batch, shape.heads, shape.tokens, format.head_dim, element_bytes(format.dtype));
    uint32_t* const bitmap = from.memory.make<uint32_t>(shape.words(format));
    const float* const importance = from.importance(format, shape.batch, shape.heads);
    if (from.memory.possible())
        mustafar_prune(from.address(&context), from.address(&format), shape.batch, shape.heads, shape.tokens,
                       from.address(&source), from.address(importance), from.address(bitmap));
}

void compress(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_format format = from.format(MUSTAFAR_LAYOUT_FIXED);
    const Shape shape(from);
    const mustafar_dense source =
        from.dense(shape.batch, shape.heads, shape.tokens, format.head_dim, element_bytes(format.dtype));
    const mustafar_blocks blocks = from.blocks(format, shape.batch, shape.heads, shape.tokens);
    const float* const factors = from.key_factors(format, shape.batch, shape.heads);
    const float* const importance = from.importance(format, shape.batch, shape.heads);
    const uint32_t* const bitmap = importance != nullptr && !from.mishap()
                                       ? nullptr
                                       : from.bitmap(format, times(wide{shape.batch} * shape.heads, shape.tokens));
    if (!from.memory.possible()) return;
    if (mustafar_compress(&context, shape.batch, shape.heads, shape.tokens, &source, from.address(bitmap),
                          from.address(importance), factors, &blocks) != 0)
        return;
    from.corrupt_blocks();
    decompress(from, context, shape, blocks, factors);
}

void masked(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_format format = from.format(MUSTAFAR_LAYOUT_OFFSETS);
    const Shape shape(from);
    const mustafar_dense source =
        from.dense(shape.batch, shape.heads, shape.tokens, format.head_dim, element_bytes(format.dtype));
    uint32_t* const bitmap = from.memory.make<uint32_t>(shape.words(format));
    uint32_t* const table = from.memory.make<uint32_t>(shape.blocks() + 1);
    const float* const factors = from.key_factors(format, shape.batch, shape.heads);
    int64_t slab_bytes = 0;
    if (!from.memory.possible()) return;
    if (std::max(shape.words(format), shape.blocks()) > Memory::most_bytes / 4) {  // nothing is there to be filled
        mustafar_offsets(&context, &format, shape.batch, shape.heads, shape.tokens, bitmap, table, &slab_bytes);
        return;
    }
    if (format.head_dim % 32 != 0 && shape.words(format) > 0 && !from.mishap())
        for (int64_t w = bitmap_words(format.head_dim) - 1; w < static_cast<int64_t>(shape.words(format));
             w += bitmap_words(format.head_dim))
            bitmap[w] &= (1u << format.head_dim % 32) - 1;
    if (mustafar_offsets(&context, &format, shape.batch, shape.heads, shape.tokens, bitmap, table, &slab_bytes) != 0)
        return;

    mustafar_blocks blocks{};
    blocks.format = format;
    blocks.page_blocks = static_cast<int32_t>((shape.tokens + 31) / 32);
    blocks.page_capacity = 1;
    blocks.slab_bytes = from.mishap() ? from.number(0, 8192) : slab_bytes;
    blocks.offsets = table;
    from.slabs(blocks, 1, 1);
    int32_t* const pages = from.memory.make<int32_t>(shape.batch);
    if (!from.memory.possible() || shape.batch > 64) return;
    for (int32_t b = 0; b < shape.batch; ++b) pages[b] = 0;
    blocks.pages = pages;
    if (from.mishap()) from.corrupt(bitmap, static_cast<size_t>(shape.words(format)) * sizeof *bitmap);
    if (mustafar_compress(&context, shape.batch, shape.heads, shape.tokens, &source, bitmap, nullptr, factors,
                          &blocks) != 0)
        return;
    from.corrupt_blocks();
    from.corrupt(table, static_cast<size_t>(shape.blocks() + 1) * sizeof *table);
    decompress(from, context, shape, blocks, factors);
}

void decompress(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_format format = from.format(from.number32(MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS));
    const Shape shape(from);
    const mustafar_blocks blocks = from.blocks(format, shape.batch, shape.heads, shape.tokens);
    decompress(from, context, shape, blocks, from.key_factors(format, shape.batch, shape.heads));
}

void convert(Arguments& from) {
    const mustafar_context context = from.context();
    mustafar_format format = from.format(MUSTAFAR_LAYOUT_FIXED);
    const Shape shape(from);
    const mustafar_blocks source = from.blocks(format, shape.batch, shape.heads, shape.tokens);
    format.order = from.number32(MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_VALUE_QUADS);
    if (from.mishap()) format = from.format(MUSTAFAR_LAYOUT_FIXED);
    const mustafar_blocks destination = from.blocks(format, shape.batch, shape.heads, shape.tokens);
    if (!from.memory.possible()) return;
    mustafar_convert(&context, shape.batch, shape.heads, shape.tokens, from.address(&source),
                     from.address(&destination));
}

void key_factors(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_format format = from.format(MUSTAFAR_LAYOUT_FIXED);
    const Shape shape(from);
    const mustafar_dense source =
        from.dense(shape.batch, shape.heads, shape.tokens, format.head_dim, element_bytes(format.dtype));
    float* const factors = from.memory.make<float>(times(wide{shape.batch} * shape.heads, format.head_dim));
    if (from.memory.possible())
        mustafar_key_factors(&context, format.dtype, format.head_dim, shape.batch, shape.heads, shape.tokens,
                             from.address(&source), from.address(factors));
}

void products(Arguments& from) {
    const mustafar_context context = from.context();
    const bool key_scores = from.input.ConsumeBool();
    mustafar_product product{};
    product.batch = from.number32(0, 2);
    product.num_kv_heads = from.number32(1, 2);
    product.num_heads = from.mishap() ? from.number32(1, 4) : from.multiple(product.num_kv_heads);
    product.num_queries = from.number32(0, 3);
    product.tokens = from.number(0, 44);
    const mustafar_format format = from.format(from.number32(MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS));
    product.blocks = from.blocks(format, product.batch, product.num_kv_heads, product.tokens);
    product.dense =
        from.dense(product.batch, product.num_heads, product.num_queries, format.head_dim, element_bytes(format.dtype));
    product.weights = from.dense(product.batch, product.num_heads, product.num_queries, product.tokens, 4);
    product.scale = from.mishap() ? from.input.ConsumeFloatingPoint<float>() : 0.125f;
    if (key_scores || from.mishap())
        product.key_factors = from.key_factors(format, product.batch, product.num_kv_heads);
    if (!from.memory.possible()) return;
    key_scores ? mustafar_key_scores(&context, from.address(&product))
               : mustafar_value_sum(&context, from.address(&product));
}

}  // namespace mustafar_fuzz
