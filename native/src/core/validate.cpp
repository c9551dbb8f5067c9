#include "core/validate.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <vector>

#include "core/checks.h"
#include "core/compression_rule.h"
#include "core/format.h"
#include "core/hadamard.h"
#include "core/limits.h"

namespace mustafar {
namespace {

void check_head_dim(const char* name, int32_t head_dim) {
    if (std::find(std::begin(head_dims), std::end(head_dims), head_dim) == std::end(head_dims))
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: expected 64, 80, 96, 128 or 256, got %d", name, head_dim);
}

void check_balanced(const char* name, const mustafar_format& format) {
    if (format.head_dim % 64 != 0)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s.format.head_dim: balanced patterns exist for 64, 128 and 256, got %d",
             name, format.head_dim);
    if (format.layout != MUSTAFAR_LAYOUT_FIXED)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.format.layout: expected 0 (fixed) for a balanced pattern, got %d",
             name, format.layout);
    const int kept = balanced_kept(format);
    if (format.keep * unit_elements % format.head_dim != 0 || kept < fewest_balanced || kept > most_balanced)
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "%s.format.keep: expected 5, 6, 7 or 8 sixteenths of head_dim %d for a balanced pattern, got %d", name,
             format.head_dim, format.keep);
}

void check_rotated(const char* name, const mustafar_format& format) {
    if (!has_integers(format))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.format.value_format: expected integers for rotated keys, got %d",
             name, format.value_format);
    if (hadamard_factor(format.head_dim) == 0.0f)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s.format.head_dim: keys of 64, 128 and 256 channels can be rotated, got %d",
             name, format.head_dim);
}

// Sums of rotated rows would have to be rotated back.
void check_values(const char* name, const mustafar_format& format) {
    if (is_rotated(format))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s.format.pattern: expected a pattern for values, got %d (rotated keys)", name, format.pattern);
}

// Any format that this library knows.
void check_format(const char* name, const mustafar_format& format) {
    char text[48];
    std::snprintf(text, sizeof text, "%s.format.head_dim", name);
    check_head_dim(text, format.head_dim);
    check_dtype("format.dtype", format.dtype);
    check_range("format.value_format", format.value_format, MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_VALUE_FORMAT_INT4);
    check_range("format.pattern", format.pattern, MUSTAFAR_PATTERN_UNSTRUCTURED, MUSTAFAR_PATTERN_ALL_ROTATED);
    check_range("format.layout", format.layout, MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS);
    check_range("format.order", format.order, MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_VALUE_QUADS);
    if (format.layout == MUSTAFAR_LAYOUT_FIXED)
        check_range("format.keep", format.keep, 1, format.head_dim);
    else
        check_range("format.keep (offsets layout)", format.keep, 0, 0);
    if (is_balanced(format)) check_balanced(name, format);
    if (keeps_all(format) && (format.layout != MUSTAFAR_LAYOUT_FIXED || format.keep != format.head_dim))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s.format.layout, keep: expected 0 (fixed) and head_dim (%d) if all channels are kept, got %d and %d",
             name, format.head_dim, format.layout, format.keep);
    if (is_rotated(format)) check_rotated(name, format);
    if (format.pattern == MUSTAFAR_PATTERN_MASK && format.layout != MUSTAFAR_LAYOUT_FIXED)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.format.layout: expected 0 (fixed) for the mask pattern, got %d",
             name, format.layout);
}

// What a device does not support.
void check_served(const char* name, const mustafar_context& context, const mustafar_format& format) {
    const bool fragment = format.order == MUSTAFAR_ORDER_KEY_FRAGMENT || format.order == MUSTAFAR_ORDER_VALUE_FRAGMENT;
    if (context.device == MUSTAFAR_DEVICE_CPU && fragment)
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "%s.format.order: the CPU supports the plain order (0) and the quad orders (3, 4), got %d", name,
             format.order);
    if (context.device == MUSTAFAR_DEVICE_CPU) return;
    if (format.order != MUSTAFAR_ORDER_PLAIN && !fragment)
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "%s.format.order: CUDA supports the plain order (0) and the fragment orders (1, 2), got %d", name,
             format.order);
}

void check_shape(int32_t batch, int32_t heads, int64_t tokens) {
    check_range("batch", batch, 0, INT_MAX);
    check_range("heads", heads, 0, INT_MAX);
    check_range("tokens", tokens, 0, INT_MAX - block_tokens);
    if (wide{batch} * heads * divide_up(tokens, block_tokens) >= (wide{1} << 48))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "batch, heads, tokens: expected fewer than 2^48 blocks, got %d x %d x %lld", batch, heads,
             (long long)tokens);
}

// Query rows are counted in 32 bits, over the whole call, so that no size computed from them exceeds 64 bits. An empty
// dimension counts as one: a size query may come before the dimension is known.
void check_query_rows(int32_t batch, int32_t num_heads, int32_t num_queries) {
    if (wide{std::max(batch, 1)} * num_heads * std::max(num_queries, 1) > INT_MAX)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "batch, num_heads, num_queries: expected fewer than 2^31 query rows, got %d x %d x %d", batch, num_heads,
             num_queries);
}

void check_same_values(const mustafar_format& keys, const mustafar_format& values) {
    if (keys.head_dim != values.head_dim)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "values.format.head_dim: expected that of the keys (%d), got %d",
             keys.head_dim, values.head_dim);
    if (keys.dtype != values.dtype)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "values.format.dtype: expected that of the keys (%d), got %d",
             keys.dtype, values.dtype);
}

// Channel scales of keys: one per channel of that many (slot, KV head) pairs.
void check_factors_size(const char* name, int64_t slots, int64_t heads, int32_t head_dim) {
    if (wide{slots} * heads * head_dim * int{sizeof(float)} > max_span_bytes)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected at most 2^56 bytes, got those of %lld x %lld heads", name,
             (long long)slots, (long long)heads);
}

void check_key_factors(const float* factors, const mustafar_format& format, int64_t slots, int64_t heads) {
    if (factors == nullptr) return;
    if (!has_integers(format))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "key_factors: expected null for native values, which have no scales");
    check_aligned("key_factors", factors, alignof(float));
    check_factors_size("key_factors", slots, heads, format.head_dim);
}

// The layout of the slabs. The blocks of different pages and heads must not overlap, and must end before the padding.
void check_slabs(const char* name, const mustafar_blocks& blocks, int32_t heads) {
    check_range("page_blocks", blocks.page_blocks, 1, INT_MAX);
    check_range("slab_pages", blocks.slab_pages, 1, INT_MAX);
    if (int64_t{blocks.slab_count} * blocks.slab_pages > INT_MAX)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.slab_count: expected fewer than 2^31 pages, got %d slabs of %d",
             name, blocks.slab_count, blocks.slab_pages);
    for (const int64_t bytes : {blocks.base, blocks.head_stride, blocks.page_bytes})
        if (bytes < 0 || bytes % 16 != 0 || bytes > max_span_bytes)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
                 "%s.base, head_stride, page_bytes: expected multiples of 16 in 0 ... 2^56; got %lld, %lld, %lld", name,
                 (long long)blocks.base, (long long)blocks.head_stride, (long long)blocks.page_bytes);
    check_range("slab_bytes", blocks.slab_bytes, 0, (int64_t)max_span_bytes);
    const wide last_page = blocks.base + wide{blocks.slab_pages - 1} * blocks.page_bytes;
    const bool fixed = blocks.format.layout == MUSTAFAR_LAYOUT_FIXED;
    const wide run = fixed ? wide{blocks.page_blocks} * fixed_block_bytes(blocks.format) : 0;
    const wide bytes = last_page + (fixed ? wide{heads - 1} * blocks.head_stride : 0) + run + MUSTAFAR_PAGE_PADDING;
    if (bytes > blocks.slab_bytes)
        fail(MUSTAFAR_STATUS_BUFFER_TOO_SMALL,
             "%s.slab_bytes: expected >= %lld for %d pages of %d heads of %d blocks with padding, got %lld", name,
             (long long)(bytes > max_span_bytes ? max_span_bytes : bytes), blocks.slab_pages, heads, blocks.page_blocks,
             (long long)blocks.slab_bytes);
    if (fixed && ((heads > 1 && blocks.head_stride < run) || (blocks.slab_pages > 1 && blocks.page_bytes < run)))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s.head_stride, page_bytes: expected >= %lld (blocks that do not overlap), got %lld, %lld", name,
             (long long)run, (long long)blocks.head_stride, (long long)blocks.page_bytes);
    check_aligned(name, static_cast<const void*>(blocks.slabs), sizeof(void*));
}

// Blocks of which the first `tokens` of each slot may be accessed. Slabs are checked if there are any: on a device it
// is not known here whether the call accesses a block.
void check_blocks(const char* name, const mustafar_context& context, const mustafar_blocks& blocks, int32_t slots,
                  int32_t heads, int64_t tokens) {
    check_format(name, blocks.format);
    check_served(name, context, blocks.format);
    check_range("slab_count", blocks.slab_count, 0, INT_MAX);
    if (slots == 0 || heads == 0) return;
    if (blocks.slab_count > 0) check_slabs(name, blocks, heads);
    if (tokens == 0) return;
    if (blocks.slab_count == 0) fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.slab_count: expected >= 1, got 0", name);
    const int64_t used = divide_up(tokens, block_tokens);
    if (blocks.page_capacity < 1 || wide{blocks.page_capacity} * blocks.page_blocks < used)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s.page_capacity: expected room for %lld blocks of each head, got %lld pages of %d", name,
             (long long)used, (long long)blocks.page_capacity, blocks.page_blocks);
    if (wide{slots} * blocks.page_capacity * int{sizeof(int32_t)} > max_span_bytes)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.page_capacity: expected a table within 2^56 bytes, got %lld", name,
             (long long)blocks.page_capacity);
    check_aligned(name, blocks.pages, alignof(int32_t));
    if (blocks.format.layout == MUSTAFAR_LAYOUT_FIXED) {
        if (blocks.offsets != nullptr)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.offsets: expected null for the fixed layout", name);
        return;
    }
    check_aligned("offsets", blocks.offsets, alignof(uint32_t));
    if (wide{slots} * heads * blocks.page_blocks * int{sizeof(uint32_t)} > max_span_bytes)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.page_blocks: expected an offset table within 2^56 bytes, got %d",
             name, blocks.page_blocks);
    if (used > blocks.page_blocks)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.page_blocks: expected >= %lld (one page holds all blocks), got %d",
             name, (long long)used, blocks.page_blocks);
}

// The slots of a call's rows, which can't be inspected here on a device.
void check_sequences(const mustafar_context& context, const int32_t* sequences, int32_t batch, int32_t num_slots,
                     bool distinct) {
    check_range("num_slots", num_slots, sequences == nullptr ? batch : 0, INT_MAX);
    check_optional("sequences", sequences, alignof(int32_t));
    if (sequences == nullptr || context.device != MUSTAFAR_DEVICE_CPU) return;
    for (int32_t b = 0; b < batch; ++b) check_range("sequences", sequences[b], 0, int64_t{num_slots} - 1);
    if (!distinct) return;
    std::vector<int32_t> sorted(sequences, sequences + batch);
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end())
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "sequences: expected different slots, got slot %d more than once",
             *twice);
}

// What selects channels in addition to the pattern: a bitmap, an importance of each (slot or sequence, head), or
// neither. of: the beginning of the arguments' names. selects: whether something is known to be selected.
void check_selection(const char* of, const void* bitmap, const float* importance, const mustafar_format& format,
                     int64_t slots, int64_t heads, bool selects) {
    char bitmap_name[32], importance_name[32];
    std::snprintf(bitmap_name, sizeof bitmap_name, "%sbitmap", of);
    std::snprintf(importance_name, sizeof importance_name, "%simportance", of);
    check_optional(bitmap_name, bitmap, alignof(uint32_t));
    check_optional(importance_name, importance, alignof(float));
    if (bitmap == nullptr && needs_bitmap(format) && selects)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s: expected a bitmap for the mask pattern and for the offsets layout, got null", bitmap_name);
    if (bitmap != nullptr && keeps_all(format))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected null if all channels are kept", bitmap_name);
    if (importance == nullptr) return;
    if (bitmap != nullptr)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected null with a bitmap, which already chooses the channels",
             importance_name);
    if (keeps_all(format))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected null if all channels are kept", importance_name);
    check_factors_size(importance_name, slots, heads, format.head_dim);
}

// Tail or fresh tokens: keys and values of the same extent.
void check_pair(const char* name, const mustafar_dense& keys, const mustafar_dense& values, const Extent& extent,
                int element, bool written) {
    const auto check = written ? check_written : check_dense;
    char text[48];
    std::snprintf(text, sizeof text, "%s_keys", name);
    check(text, keys, extent, element);
    std::snprintf(text, sizeof text, "%s_values", name);
    check(text, values, extent, element);
}

// due: maximum number of tokens that a sequence has to compress; on a device that is not known here.
void check_append_selection(const mustafar_context& context, const mustafar_append& append, int64_t due) {
    // If nothing is ever compressed, nothing has to be specified.
    const bool on_cpu = context.device == MUSTAFAR_DEVICE_CPU;
    if (on_cpu ? due == 0 : append.keys.slab_count == 0) return;
    check_selection("key_", append.key_bitmap, append.key_importance, append.keys.format, append.num_slots,
                    append.num_kv_heads, on_cpu);
    check_selection("value_", append.value_bitmap, append.value_importance, append.values.format, append.num_slots,
                    append.num_kv_heads, on_cpu);
    if (append.key_bitmap == nullptr && append.value_bitmap == nullptr) return;
    check_range("bitmap_tokens (those that fall due)", append.bitmap_tokens, std::max<int64_t>(due, 1),
                INT_MAX - block_tokens);
    if (wide{append.batch} * append.num_kv_heads * append.bitmap_tokens * bitmap_bytes(append.keys.format.head_dim) >
        max_span_bytes)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "bitmap_tokens: expected bitmaps within 2^56 bytes, got %d tokens",
             append.bitmap_tokens);
}

// Counts and formats: what the workspace depends on.
void check_attention_shape(const mustafar_context& context, const mustafar_attention* pointer) {
    const mustafar_attention& attention = not_null("attention", pointer);
    check_range("batch", attention.batch, 0, INT_MAX);
    check_range("num_slots", attention.num_slots, 0, INT_MAX);
    check_heads(attention.num_heads, attention.num_kv_heads);
    check_range("num_queries", attention.num_queries, 0, INT_MAX);
    if (attention.num_fresh != 0 && attention.num_fresh != attention.num_queries)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "num_fresh: expected 0 or num_queries (%d), got %d",
             attention.num_queries, attention.num_fresh);
    check_range("tail_capacity", attention.tail_capacity, 0, INT_MAX);
    check_range("max_tokens", attention.max_tokens, 0, INT_MAX - block_tokens);
    check_range("sliding_window", attention.sliding_window, 0, INT_MAX);
    if (!std::isfinite(attention.scale) || attention.scale <= 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "scale: expected a positive number, got %g", (double)attention.scale);
    check_format("keys", attention.keys.format);
    check_format("values", attention.values.format);
    check_same_values(attention.keys.format, attention.values.format);
    check_values("values", attention.values.format);
    check_served("keys", context, attention.keys.format);
    check_served("values", context, attention.values.format);
    check_query_rows(attention.batch, attention.num_heads, attention.num_queries);
}

}  // namespace

const mustafar_context& checked(const mustafar_context* context) {
    not_null("context", context);
    check_range("context.device", context->device, MUSTAFAR_DEVICE_CPU, MUSTAFAR_DEVICE_CUDA);
    check_range("context.device_index", context->device_index, 0, INT_MAX);
    check_range("context.num_threads", context->num_threads, 0, 4096);
    check_range("context.cpu_variant", context->cpu_variant, MUSTAFAR_CPU_VARIANT_AUTO,
                MUSTAFAR_CPU_VARIANT_AVX512_CORE);
    return *context;
}

void check_limits(const mustafar_limits* limits) {
    not_null("limits", limits);
}

void check_block_bytes(const mustafar_format* format, const int64_t* bytes) {
    check_format("block_bytes", not_null("format", format));
    if (format->layout != MUSTAFAR_LAYOUT_FIXED)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "format.layout: expected 0 (fixed), got %d", format->layout);
    not_null("bytes", bytes);
}

void check_prune(const mustafar_context& context, const mustafar_format* format, int32_t batch, int32_t heads,
                 int64_t tokens, const mustafar_dense* source, const float* importance, const void* bitmap) {
    check_format("prune", not_null("format", format));
    check_served("prune", context, *format);
    if (format->layout != MUSTAFAR_LAYOUT_FIXED)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "format.layout: expected 0 (fixed), got %d", format->layout);
    check_shape(batch, heads, tokens);
    const Extent extent{batch, heads, tokens, format->head_dim};
    check_dense("source", not_null("source", source), extent, element_bytes(format->dtype));
    if (extent.empty()) return;
    check_aligned("bitmap", bitmap, alignof(uint32_t));
    if (format->pattern == MUSTAFAR_PATTERN_MASK)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "format.pattern: expected a pattern that selects channels, got %d (mask)", format->pattern);
    check_selection("", nullptr, importance, *format, batch, heads, true);
}

void check_offsets(const mustafar_context& context, const mustafar_format* format, int32_t batch, int32_t heads,
                   int64_t tokens, const void* bitmap, const void* offsets, const void* page_bytes) {
    check_format("offsets", not_null("format", format));
    check_served("offsets", context, *format);
    if (format->layout != MUSTAFAR_LAYOUT_OFFSETS)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "format.layout: expected 1 (offsets), got %d", format->layout);
    check_shape(batch, heads, tokens);
    if (batch != 0 && heads != 0 && tokens != 0) check_aligned("bitmap", bitmap, alignof(uint32_t));
    check_aligned("offsets", offsets, alignof(uint32_t));
    check_aligned("page_bytes", page_bytes, alignof(int64_t));
}

void check_key_factors_call(int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads, int64_t tokens,
                            const mustafar_dense* source, const float* factors) {
    check_dtype("dtype", dtype);
    check_head_dim("head_dim", head_dim);
    check_shape(batch, heads, tokens);
    check_dense("source", not_null("source", source), Extent{batch, heads, tokens, head_dim}, element_bytes(dtype));
    if (batch != 0 && heads != 0) check_aligned("factors", factors, alignof(float));
    check_factors_size("factors", batch, heads, head_dim);
}

void check_compress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
                    const mustafar_dense* source, const void* bitmap, const float* importance, const float* key_factors,
                    const mustafar_blocks* destination) {
    check_shape(batch, heads, tokens);
    check_blocks("destination", context, not_null("destination", destination), batch, heads, tokens);
    check_key_factors(key_factors, destination->format, batch, heads);
    const Extent extent{batch, heads, tokens, destination->format.head_dim};
    check_dense("source", not_null("source", source), extent, element_bytes(destination->format.dtype));
    if (!extent.empty()) check_selection("", bitmap, importance, destination->format, batch, heads, true);
}

void check_decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                      const mustafar_blocks* source, const float* key_factors, const mustafar_dense* destination) {
    check_shape(batch, heads, tokens);
    check_range("first", first, 0, INT_MAX - block_tokens - tokens);
    check_blocks("source", context, not_null("source", source), batch, heads, tokens == 0 ? 0 : first + tokens);
    check_key_factors(key_factors, source->format, batch, heads);
    check_written("destination", not_null("destination", destination),
                  Extent{batch, heads, tokens, source->format.head_dim}, element_bytes(source->format.dtype));
}

void check_convert(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
                   const mustafar_blocks* source, const mustafar_blocks* destination) {
    check_shape(batch, heads, tokens);
    check_blocks("source", context, not_null("source", source), batch, heads, tokens);
    check_blocks("destination", context, not_null("destination", destination), batch, heads, tokens);
    const mustafar_format &from = source->format, &to = destination->format;
    const auto check_same = [](const char* field, int32_t expected, int32_t got) {
        if (expected != got)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "destination.format.%s: expected that of the source (%d), got %d",
                 field, expected, got);
    };
    check_same("head_dim", from.head_dim, to.head_dim);
    check_same("dtype", from.dtype, to.dtype);
    check_same("value_format", from.value_format, to.value_format);
    check_same("pattern", from.pattern, to.pattern);
    check_same("layout", from.layout, to.layout);
    check_same("keep", from.keep, to.keep);
    if (from.layout != MUSTAFAR_LAYOUT_FIXED)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "source.format.layout: expected 0 (fixed), got %d", from.layout);
}

void check_product(const mustafar_context& context, const mustafar_product* pointer, ProductOutput output) {
    const mustafar_product& product = not_null("product", pointer);
    check_shape(product.batch, product.num_kv_heads, product.tokens);
    check_heads(product.num_heads, product.num_kv_heads);
    check_range("num_queries", product.num_queries, 0, INT_MAX);
    check_query_rows(product.batch, product.num_heads, product.num_queries);
    check_blocks("blocks", context, product.blocks, product.batch, product.num_kv_heads, product.tokens);
    const mustafar_format& format = product.blocks.format;
    const Extent dense{product.batch, product.num_heads, product.num_queries, format.head_dim};
    const Extent weights{product.tokens == 0 ? 0 : product.batch, product.num_heads, product.num_queries,
                         product.tokens};
    const bool scores = output == ProductOutput::weights;
    if (!scores) check_values("blocks", format);
    if (scores)
        check_key_factors(product.key_factors, format, product.batch, product.num_kv_heads);
    else if (product.key_factors != nullptr)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "key_factors: expected null for a sum of values");
    (scores ? check_dense : check_written)("dense", product.dense, dense, element_bytes(format.dtype));
    (scores ? check_written : check_dense)("weights", product.weights, weights, sizeof(float));
}

void check_attention_workspace(const mustafar_context& context, const mustafar_attention* attention,
                               const int64_t* bytes) {
    check_attention_shape(context, attention);
    not_null("bytes", bytes);
}

void check_attention(const mustafar_context& context, const mustafar_attention* pointer) {
    check_attention_shape(context, pointer);
    const mustafar_attention& attention = *pointer;
    const int head_dim = attention.keys.format.head_dim;
    const int element = element_bytes(attention.keys.format.dtype);
    const Extent queries{attention.batch, attention.num_heads, attention.num_queries, head_dim};
    check_dense("query", attention.query, queries, element);
    check_written("output", attention.output, queries, element);
    if (queries.empty()) return;
    check_sequences(context, attention.sequences, attention.batch, attention.num_slots, false);
    check_aligned("lengths", attention.lengths, alignof(int32_t));
    check_aligned("compressed", attention.compressed, alignof(int32_t));
    check_optional("query_counts", attention.query_counts, alignof(int32_t));
    check_optional("log_sum_exp", attention.log_sum_exp, alignof(float));
    check_key_factors(attention.key_factors, attention.keys.format, attention.num_slots, attention.num_kv_heads);
    check_pair("tail", attention.tail_keys, attention.tail_values,
               Extent{attention.num_slots, attention.num_kv_heads, attention.tail_capacity, head_dim}, element, false);
    check_pair("fresh", attention.fresh_keys, attention.fresh_values,
               Extent{attention.batch, attention.num_kv_heads, attention.num_fresh, head_dim}, element, false);
    // The CPU back end checks the counts and the blocks that they make it read; on a device only the caller's bound is
    // known here.
    int64_t compressed = 0;
    if (context.device == MUSTAFAR_DEVICE_CPU)
        for (int32_t b = 0; b < attention.batch; ++b) {
            const int32_t slot = slot_of(attention, b);
            const int64_t length = attention.lengths[slot];
            check_range("lengths", length, 0, attention.max_tokens);
            const int64_t count = attention.query_counts ? attention.query_counts[b] : attention.num_queries;
            check_range("query_counts", count, 0, attention.num_queries);
            const int64_t fresh = attention.num_fresh ? count : 0;
            check_range("lengths (fresh tokens included)", length, fresh, attention.max_tokens);
            check_range("compressed", attention.compressed[slot], 0, length - fresh);
            if (length - fresh - attention.compressed[slot] > attention.tail_capacity)
                fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
                     "tail_capacity: expected >= %lld dense tokens of sequence %d, got %d",
                     (long long)(length - fresh - attention.compressed[slot]), slot, attention.tail_capacity);
            compressed = std::max<int64_t>(compressed, attention.compressed[slot]);
        }
    check_blocks("keys", context, attention.keys, attention.num_slots, attention.num_kv_heads, compressed);
    check_blocks("values", context, attention.values, attention.num_slots, attention.num_kv_heads, compressed);
}

void check_append(const mustafar_context& context, const mustafar_append* pointer) {
    const mustafar_append& append = not_null("append", pointer);
    check_range("batch", append.batch, 0, INT_MAX);
    check_range("num_kv_heads", append.num_kv_heads, 1, INT_MAX);
    check_range("num_tokens", append.num_tokens, 0, INT_MAX - block_tokens);
    check_range("lookahead", append.lookahead, 0, max_lookahead);
    check_range("group_size", append.group_size, block_tokens, max_group_size);
    check_range("local_window", append.local_window, 0, max_local_window);
    check_range("max_tokens", append.max_tokens, 0, INT_MAX - block_tokens);
    if (append.group_size % block_tokens != 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "group_size: expected a multiple of %d, got %d", block_tokens,
             append.group_size);
    // On a device it is not known here how many tokens are dense, only that its kernels need a multiple of 32.
    const int tail_unit = context.device == MUSTAFAR_DEVICE_CPU ? 1 : block_tokens;
    if (append.tail_capacity < tail_unit || append.tail_capacity % tail_unit != 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "tail_capacity: expected a multiple of %d, >= %d, got %d", tail_unit,
             tail_unit, append.tail_capacity);
    check_format("keys", append.keys.format);
    check_format("values", append.values.format);
    check_same_values(append.keys.format, append.values.format);
    check_values("values", append.values.format);
    if (append.keys.format.layout != MUSTAFAR_LAYOUT_FIXED || append.values.format.layout != MUSTAFAR_LAYOUT_FIXED)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "keys, values: expected the fixed layout (0), got %d and %d",
             append.keys.format.layout, append.values.format.layout);
    if (append.batch == 0) return;
    check_sequences(context, append.sequences, append.batch, append.num_slots, true);
    check_aligned("lengths", append.lengths, alignof(int32_t));
    check_aligned("compressed", append.compressed, alignof(int32_t));
    check_optional("new_lengths", append.new_lengths, alignof(int32_t));
    check_optional("new_compressed", append.new_compressed, alignof(int32_t));
    check_optional("counts", append.counts, alignof(int32_t));
    check_key_factors(append.key_factors, append.keys.format, append.num_slots, append.num_kv_heads);
    const int head_dim = append.keys.format.head_dim;
    const int element = element_bytes(append.keys.format.dtype);
    check_pair("new", append.new_keys, append.new_values,
               Extent{append.batch, append.num_kv_heads, append.num_tokens, head_dim}, element, false);
    check_pair("tail", append.tail_keys, append.tail_values,
               Extent{append.num_slots, append.num_kv_heads, append.tail_capacity, head_dim}, element, true);
    int64_t longest = 0, due = 0;
    if (context.device == MUSTAFAR_DEVICE_CPU)
        for (int32_t b = 0; b < append.batch; ++b) {
            const int32_t slot = slot_of(append, b), length = append.lengths[slot],
                          compressed = append.compressed[slot];
            const int64_t count = append.counts ? append.counts[b] : append.num_tokens;
            check_range("counts", count, 0, append.num_tokens);
            check_range("lengths (with the new tokens)", length + count, count, append.max_tokens);
            check_range("compressed", compressed, 0, length);
            if (compressed % append.group_size != 0)
                fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "compressed: expected a multiple of group_size (%d), got %d",
                     append.group_size, compressed);
            check_range("lengths - compressed", length - compressed, 0, append.tail_capacity);
            const int64_t after = std::max<int64_t>(
                compressed,
                compressed_tokens<int64_t>(length + count, append.lookahead, append.local_window, append.group_size));
            check_range("lengths - compressed (with the new tokens)", length + count - after, 0, append.tail_capacity);
            longest = std::max(longest, length + count);
            due = std::max(due, after - compressed);
        }
    check_append_selection(context, append, due);
    // Only whole groups are compressed, and only tokens that are there, so a table need not have room for more.
    const int64_t end = compressed_tokens<int64_t>(longest, append.lookahead, append.local_window, append.group_size);
    check_blocks("keys", context, append.keys, append.num_slots, append.num_kv_heads, end);
    check_blocks("values", context, append.values, append.num_slots, append.num_kv_heads, end);
}

}  // namespace mustafar
