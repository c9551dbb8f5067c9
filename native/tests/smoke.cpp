// Every function of the C API once, with results that can be told beforehand, and many short lives of a cache. Meant for
// the sanitizers: what the functions compute is tested elsewhere.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "mustafar/mustafar.h"

namespace {

constexpr int head_dim = 64, keep = 16, heads = 2, block_tokens = MUSTAFAR_BLOCK_TOKENS;

[[noreturn]] void stop(const char* what, int line) {
    std::fprintf(stderr, "smoke.cpp:%d: %s (%s)\n", line, what, mustafar_last_error());
    std::exit(1);
}

#define EXPECT(condition) \
    if (!(condition)) stop(#condition, __LINE__)
#define EXPECT_OK(call) EXPECT((call) == MUSTAFAR_STATUS_OK)

// Zeroed memory that starts at a multiple of 64.
template <class T>
class Aligned {
public:
    explicit Aligned(size_t count) : data_(static_cast<T*>(::operator new(count * sizeof(T), alignment))) {
        std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
    }
    ~Aligned() { ::operator delete(data_, alignment); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    T* get() const { return data_; }

private:
    static constexpr std::align_val_t alignment{64};
    T* data_;
};

mustafar_format format(int32_t layout) {
    return {.head_dim = head_dim,
            .dtype = MUSTAFAR_DTYPE_F32,
            .value_format = MUSTAFAR_VALUE_FORMAT_NATIVE,
            .pattern = MUSTAFAR_PATTERN_UNSTRUCTURED,
            .layout = layout,
            .order = MUSTAFAR_ORDER_PLAIN,
            .keep = layout == MUSTAFAR_LAYOUT_FIXED ? keep : 0};
}

// A contiguous tensor [1, heads, tokens, width].
mustafar_dense dense(std::vector<float>& data, int64_t tokens, int64_t width = head_dim) {
    return {data.data(), heads * tokens * width, tokens * width, width};
}

// In each token the channels 0, 4, 8, ... are the largest: those that are kept.
std::vector<float> numbers(int64_t tokens) {
    std::vector<float> data(static_cast<size_t>(heads * tokens * head_dim));
    for (size_t i = 0; i < data.size(); ++i) data[i] = i % 4 == 0 ? 1.0f : 0.25f;
    return data;
}

void library() {
    EXPECT(mustafar_abi_version() == MUSTAFAR_ABI_VERSION);
    EXPECT(std::strlen(mustafar_version()) > 0);
    EXPECT((mustafar_cpu_variants() >> mustafar_default_cpu_variant() & 1) == 1);
    int32_t count = 0;
    const mustafar_abi_entry* table = mustafar_abi_table(&count);
    EXPECT(table != nullptr && count > 0 && mustafar_abi_table(nullptr) == nullptr);
    EXPECT(mustafar_compressed_tokens(100, 0, 32, 32) == 64 && mustafar_compressed_tokens(95, 0, 32, 32) == 32);
    EXPECT(mustafar_compressed_tokens(95, 1, 32, 32) == 64);   // the next token makes it a group
    EXPECT(mustafar_compressed_tokens(95, 40, 32, 32) == 64);  // tokens to come are in no group
    EXPECT(mustafar_compressed_tokens(INT64_MAX, 1 << 20, 0, 1) == INT64_MAX);
    EXPECT(mustafar_compressed_tokens(INT64_MAX, 0, -1, 1) == 0 && mustafar_compressed_tokens(-1, 0, 0, 1) == 0);
    mustafar_limits limits{};
    EXPECT_OK(mustafar_get_limits(&limits));
    EXPECT(limits.block_tokens == block_tokens && limits.num_head_dims > 0);
    for (int32_t i = 0; i < limits.num_head_dims; ++i) {
        mustafar_format served = format(MUSTAFAR_LAYOUT_FIXED);
        served.head_dim = limits.head_dims[i];
        int64_t served_bytes = 0;
        EXPECT_OK(mustafar_block_bytes(&served, &served_bytes));
    }
    EXPECT(mustafar_get_limits(nullptr) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    int64_t bytes = 0;
    const mustafar_format fixed = format(MUSTAFAR_LAYOUT_FIXED), offsets = format(MUSTAFAR_LAYOUT_OFFSETS);
    EXPECT_OK(mustafar_block_bytes(&fixed, &bytes));
    EXPECT(bytes == 4 * block_tokens * (head_dim / 32 + keep));
    EXPECT(mustafar_block_bytes(&offsets, &bytes) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(std::strstr(mustafar_last_error(), "layout") != nullptr);
}

// Prune, then compress and decompress in both layouts: what was kept comes back.
void tensors(const mustafar_context& context) {
    constexpr int64_t tokens = 40, blocks = 2;
    std::vector<float> data = numbers(tokens);
    const mustafar_dense source = dense(data, tokens);
    const mustafar_format fixed = format(MUSTAFAR_LAYOUT_FIXED);
    std::vector<uint32_t> bitmap(heads * tokens * 2);
    EXPECT_OK(mustafar_prune(&context, &fixed, 1, heads, tokens, &source, nullptr, bitmap.data()));
    EXPECT(std::all_of(bitmap.begin(), bitmap.end(), [](uint32_t word) { return word == 0x11111111u; }));

    for (const int32_t layout : {MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS}) {
        const bool is_fixed = layout == MUSTAFAR_LAYOUT_FIXED;
        mustafar_blocks compressed{};
        compressed.format = format(layout);
        compressed.page_blocks = blocks;
        compressed.slab_pages = compressed.slab_count = 1;
        compressed.page_capacity = 1;
        std::vector<uint32_t> offsets(heads * blocks + 1);
        if (is_fixed) {
            EXPECT_OK(mustafar_block_bytes(&compressed.format, &compressed.head_stride));
            compressed.head_stride *= blocks;
            compressed.slab_bytes = heads * compressed.head_stride + MUSTAFAR_PAGE_PADDING;
        } else {
            EXPECT_OK(mustafar_offsets(&context, &compressed.format, 1, heads, tokens, bitmap.data(), offsets.data(),
                                       &compressed.slab_bytes));
            compressed.offsets = offsets.data();
        }
        const Aligned<char> page(static_cast<size_t>(compressed.slab_bytes));
        void* const slabs[] = {page.get()};
        int32_t pages[] = {0};
        compressed.slabs = slabs;
        compressed.pages = pages;
        EXPECT_OK(mustafar_compress(&context, 1, heads, tokens, &source, is_fixed ? nullptr : bitmap.data(), nullptr,
                                    nullptr, &compressed));
        // A bitmap can take the place of a pattern's choice, but nothing that of a bitmap in the layout of offsets.
        EXPECT(mustafar_compress(&context, 1, heads, tokens, &source, is_fixed ? bitmap.data() : nullptr, nullptr,
                                 nullptr,
                                 &compressed) == (is_fixed ? MUSTAFAR_STATUS_OK : MUSTAFAR_STATUS_INVALID_ARGUMENT));
        std::vector<float> restored(data.size());
        const mustafar_dense target = dense(restored, tokens);
        EXPECT_OK(mustafar_decompress(&context, 1, heads, 0, tokens, &compressed, nullptr, &target));
        for (size_t i = 0; i < data.size(); ++i) EXPECT(restored[i] == (i % 4 == 0 ? data[i] : 0.0f));

        // A query of ones meets 16 ones in each key, and equal weights give the mean of the values.
        std::vector<float> query(heads * head_dim, 1.0f), weights(heads * tokens);
        mustafar_product product{};
        product.batch = 1;
        product.num_heads = product.num_kv_heads = heads;
        product.num_queries = 1;
        product.tokens = tokens;
        product.blocks = compressed;
        product.dense = dense(query, 1);
        product.weights = dense(weights, 1, tokens);
        product.scale = 0.5f;
        EXPECT_OK(mustafar_key_scores(&context, &product));
        for (const float weight : weights) EXPECT(weight == 8.0f);
        product.scale = 1.0f / (8 * tokens);
        EXPECT_OK(mustafar_value_sum(&context, &product));
        for (size_t i = 0; i < query.size(); ++i) EXPECT(std::abs(query[i] - (i % 4 == 0 ? 1.0f : 0.0f)) < 1e-5f);

        // A page that no slab has.
        for (const int32_t number : {1, -1, INT32_MAX, INT32_MIN}) {
            pages[0] = number;
            EXPECT(mustafar_decompress(&context, 1, heads, 0, tokens, &compressed, nullptr, &target) ==
                   MUSTAFAR_STATUS_CORRUPT_DATA);
            EXPECT(std::strstr(mustafar_last_error(), "pages") != nullptr);
        }
        pages[0] = 0;
        // A bitmap row that marks all channels: more values than the block holds.
        std::memset(page.get(), 0xff, 8 * block_tokens);
        EXPECT(mustafar_decompress(&context, 1, heads, 0, tokens, &compressed, nullptr, &target) ==
               MUSTAFAR_STATUS_CORRUPT_DATA);
    }
}

// Sizes whose tables no process can address are refused before anything is read.
void sizes(const mustafar_context& context) {
    mustafar_blocks blocks{};
    blocks.format = format(MUSTAFAR_LAYOUT_OFFSETS);
    blocks.page_blocks = 1 << 30;
    blocks.slab_pages = blocks.slab_count = 1;
    blocks.page_capacity = 1;
    blocks.slab_bytes = MUSTAFAR_PAGE_PADDING;
    void* const slabs[] = {nullptr};
    const int32_t pages[] = {0};
    const uint32_t offsets[] = {0, 0};
    blocks.slabs = slabs;
    blocks.pages = pages;
    blocks.offsets = offsets;
    const mustafar_dense target = {nullptr, 0, 0, 0};
    EXPECT(mustafar_decompress(&context, 1 << 15, 1 << 15, 0, 1, &blocks, nullptr, &target) ==
           MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(std::strstr(mustafar_last_error(), "page_blocks") != nullptr);
}

// Two sequences in slots 2 and 0 of three grow by prompts and single tokens, in a call of both or of one, and are attended
// after each. Keys and values of a page are neighbours; pages are spread over slabs of two.
void cache(const mustafar_context& context) {
    constexpr int32_t tail = 64, capacity = 160, page_blocks = 2, pages = 3, slab_pages = 2, slots = 3;
    mustafar_append append{};
    append.num_slots = slots;
    append.num_kv_heads = heads;
    append.group_size = append.local_window = 32;
    append.tail_capacity = tail;
    append.max_tokens = capacity;
    append.keys.format = format(MUSTAFAR_LAYOUT_FIXED);
    append.keys.page_blocks = page_blocks;
    append.keys.slab_pages = slab_pages;
    append.keys.slab_count = 3;
    append.keys.page_capacity = pages;
    int64_t block_bytes = 0;
    EXPECT_OK(mustafar_block_bytes(&append.keys.format, &block_bytes));
    append.keys.head_stride = page_blocks * block_bytes;
    append.keys.page_bytes = 2 * heads * append.keys.head_stride;
    append.keys.slab_bytes = slab_pages * append.keys.page_bytes + MUSTAFAR_PAGE_PADDING;
    append.values = append.keys;
    append.values.base = heads * append.keys.head_stride;
    const size_t slab_bytes = static_cast<size_t>(append.keys.slab_bytes);
    const Aligned<char> first(slab_bytes), second(slab_bytes), third(slab_bytes);
    void* const slabs[] = {first.get(), second.get(), third.get()};
    append.keys.slabs = append.values.slabs = slabs;
    int32_t table[slots * pages] = {4, 1, 3, -1, -1, -1, 0, 5, 2};  // nothing follows the entries of slot 1
    append.keys.pages = append.values.pages = table;
    std::vector<float> tail_keys(slots * heads * tail * head_dim), tail_values(slots * heads * tail * head_dim);
    append.tail_keys = dense(tail_keys, tail);
    append.tail_values = dense(tail_values, tail);

    std::vector<float> query(2 * heads * head_dim, 1.0f), output(2 * heads * head_dim), log_sum_exp(2 * heads);
    int32_t lengths[slots] = {0, -7, 0}, compressed[slots] = {0, -7, 0};
    int32_t sequences[2] = {2, 0};
    append.sequences = sequences;
    append.lengths = lengths;
    append.compressed = compressed;
    for (const int32_t count : {100, 1, -1, 31, 20}) {
        append.batch = count < 0 ? 1 : 2;  // the second sequence misses a step
        append.num_tokens = std::abs(count);
        std::vector<float> tokens = numbers(2 * append.num_tokens);
        append.new_keys = append.new_values = dense(tokens, append.num_tokens);
        int32_t new_lengths[slots] = {-1, -1, -1}, new_compressed[slots] = {-1, -1, -1};
        append.new_lengths = new_lengths;
        append.new_compressed = new_compressed;
        EXPECT_OK(mustafar_append_tokens(&context, &append));
        for (int32_t slot = 0; slot < slots; ++slot) {
            if (slot == 1 || (slot == 0 && count < 0)) {
                EXPECT(new_lengths[slot] == -1 && new_compressed[slot] == -1);
                continue;
            }
            EXPECT(new_lengths[slot] == lengths[slot] + append.num_tokens);
            EXPECT(new_compressed[slot] == mustafar_compressed_tokens(new_lengths[slot], 0, 32, 32));
            lengths[slot] = new_lengths[slot];
            compressed[slot] = new_compressed[slot];
        }

        mustafar_attention attention{};
        attention.batch = 2;
        attention.num_slots = slots;
        attention.num_queries = 1;
        attention.num_heads = attention.num_kv_heads = heads;
        attention.tail_capacity = tail;
        attention.max_tokens = capacity;
        attention.scale = 0.125f;
        attention.sequences = sequences;
        attention.lengths = lengths;
        attention.compressed = compressed;
        attention.query = dense(query, 1);
        attention.output = dense(output, 1);
        attention.keys = append.keys;
        attention.values = append.values;
        attention.tail_keys = append.tail_keys;
        attention.tail_values = append.tail_values;
        attention.log_sum_exp = log_sum_exp.data();
        EXPECT_OK(mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes));
        const Aligned<char> workspace(static_cast<size_t>(attention.workspace_bytes));
        attention.workspace = workspace.get();
        EXPECT_OK(mustafar_attention_forward(&context, &attention));
        // Every token has a one in channel 0, kept or not.
        for (const float* row = output.data(); row < output.data() + output.size(); row += head_dim)
            EXPECT(std::abs(row[0] - 1.0f) < 1e-5f);
        for (const float sum : log_sum_exp) EXPECT(std::isfinite(sum));

        table[0] = 6;
        EXPECT(mustafar_attention_forward(&context, &attention) == MUSTAFAR_STATUS_CORRUPT_DATA);
        table[0] = 4;
        sequences[1] = slots;
        EXPECT(mustafar_attention_forward(&context, &attention) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
        EXPECT(std::strstr(mustafar_last_error(), "sequences") != nullptr);
        sequences[1] = 0;
    }
    append.batch = 2;
    append.max_tokens = lengths[2];
    EXPECT(mustafar_append_tokens(&context, &append) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    append.max_tokens = capacity;
    sequences[1] = 2;
    EXPECT(mustafar_append_tokens(&context, &append) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(std::strstr(mustafar_last_error(), "slot 2 more than once") != nullptr);
}

// Three queries of a sequence whose only token is dense, in a cache that has no pages yet: there is no table to look into,
// and only the last query sees a token.
void queries_before_the_first_token(const mustafar_context& context) {
    constexpr int32_t queries = 3, tail = 32;
    std::vector<float> query(heads * queries * head_dim, 1.0f), output(query.size()), tokens = numbers(tail);
    const int32_t lengths[] = {1}, compressed[] = {0};
    for (const int32_t value_format : {MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_VALUE_FORMAT_INT8}) {
        mustafar_attention attention{};
        attention.batch = attention.num_slots = 1;
        attention.num_heads = attention.num_kv_heads = heads;
        attention.num_queries = queries;
        attention.tail_capacity = attention.max_tokens = tail;
        attention.scale = 0.125f;
        attention.lengths = lengths;
        attention.compressed = compressed;
        attention.query = dense(query, queries);
        attention.output = dense(output, queries);
        attention.keys.format = format(MUSTAFAR_LAYOUT_FIXED);
        attention.keys.format.value_format = value_format;
        attention.keys.page_blocks = attention.keys.slab_pages = 8;
        attention.values = attention.keys;
        attention.tail_keys = attention.tail_values = dense(tokens, tail);
        EXPECT_OK(mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes));
        const Aligned<char> workspace(static_cast<size_t>(attention.workspace_bytes));
        attention.workspace = workspace.get();
        EXPECT_OK(mustafar_attention_forward(&context, &attention));
        for (int i = 0; i < heads * queries; ++i) {
            const float expected = i % queries == queries - 1 ? 1.0f : 0.0f;
            EXPECT(std::abs(output[static_cast<size_t>(i * head_dim)] - expected) < 1e-5f);
        }
    }
}

// A stride of a dimension of one is never followed, but it is counted in bytes like any other.
void strides_that_no_memory_has(const mustafar_context& context) {
    std::vector<float> row(head_dim, 1.0f), output(head_dim), tail(head_dim);
    const int32_t lengths[] = {1}, compressed[] = {0};
    mustafar_attention attention{};
    attention.batch = attention.num_slots = attention.num_heads = attention.num_kv_heads = attention.num_queries = 1;
    attention.num_fresh = attention.tail_capacity = attention.max_tokens = 1;
    attention.scale = 0.125f;
    attention.lengths = lengths;
    attention.compressed = compressed;
    attention.keys.format = format(MUSTAFAR_LAYOUT_FIXED);
    attention.keys.page_blocks = attention.keys.slab_pages = 8;
    attention.values = attention.keys;
    const mustafar_dense one{row.data(), head_dim, head_dim, head_dim};
    attention.query = attention.fresh_keys = attention.fresh_values = one;
    attention.tail_keys = attention.tail_values = {tail.data(), head_dim, head_dim, head_dim};
    attention.output = {output.data(), head_dim, head_dim, head_dim};
    EXPECT_OK(mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes));
    const Aligned<char> workspace(static_cast<size_t>(attention.workspace_bytes));
    attention.workspace = workspace.get();
    EXPECT_OK(mustafar_attention_forward(&context, &attention));
    for (mustafar_dense mustafar_attention::*const tensor :
         {&mustafar_attention::query, &mustafar_attention::output, &mustafar_attention::tail_keys,
          &mustafar_attention::tail_values, &mustafar_attention::fresh_keys, &mustafar_attention::fresh_values})
        for (int64_t mustafar_dense::*const stride :
             {&mustafar_dense::batch_stride, &mustafar_dense::head_stride, &mustafar_dense::token_stride}) {
            mustafar_attention wrong = attention;
            wrong.*tensor.*stride = INT64_MAX / 3;
            EXPECT(mustafar_attention_forward(&context, &wrong) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
            EXPECT(std::strstr(mustafar_last_error(), "strides") != nullptr);
        }

    mustafar_norm norm{MUSTAFAR_DTYPE_F32,          head_dim, 1,           1e-5f,
                       {row.data(), INT64_MAX / 3}, {},       tail.data(), {output.data(), head_dim}};
    EXPECT(mustafar_rms_norm(&context, &norm) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(std::strstr(mustafar_last_error(), "row_stride") != nullptr);
    norm.input.row_stride = head_dim;
    EXPECT_OK(mustafar_rms_norm(&context, &norm));
}

// Graphs are CUDA's: the CPU refuses them, and nobody takes null.
void graphs() {
    const mustafar_context cpu{MUSTAFAR_DEVICE_CPU, 0, 1, MUSTAFAR_CPU_VARIANT_AUTO, nullptr};
    const mustafar_context default_stream{MUSTAFAR_DEVICE_CUDA, 0, 0, 0, nullptr};
    void* made = &made;
    EXPECT(mustafar_stream_create(&cpu, &made) == MUSTAFAR_STATUS_UNSUPPORTED && made == nullptr);
    EXPECT(std::strstr(mustafar_last_error(), "CUDA") != nullptr);
    EXPECT(mustafar_stream_create(&cpu, nullptr) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(mustafar_stream_destroy(&cpu) == MUSTAFAR_STATUS_UNSUPPORTED);
    EXPECT(mustafar_capture_begin(&cpu) == MUSTAFAR_STATUS_UNSUPPORTED);
    EXPECT(mustafar_capture_begin(nullptr) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    made = &made;
    EXPECT(mustafar_capture_end(&cpu, &made) == MUSTAFAR_STATUS_UNSUPPORTED && made == nullptr);
    EXPECT(mustafar_graph_launch(&cpu, nullptr) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(mustafar_graph_launch(&cpu, &made) == MUSTAFAR_STATUS_UNSUPPORTED);
    EXPECT(mustafar_graph_destroy(&cpu, nullptr) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(mustafar_stream_destroy(&default_stream) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(mustafar_capture_begin(&default_stream) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(mustafar_capture_end(&default_stream, nullptr) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
}

}  // namespace

int main() {
    library();
    graphs();
    for (int32_t variant = MUSTAFAR_CPU_VARIANT_AUTO; variant < 32; ++variant) {
        if ((mustafar_cpu_variants() >> variant & 1) == 0) continue;
        for (const int32_t threads : {1, 3}) {
            const mustafar_context context{MUSTAFAR_DEVICE_CPU, 0, threads, variant, nullptr};
            tensors(context);
            sizes(context);
            queries_before_the_first_token(context);
            strides_that_no_memory_has(context);
            for (int life = 0; life < 50; ++life) cache(context);
        }
    }
    std::puts("every function was called");
}
