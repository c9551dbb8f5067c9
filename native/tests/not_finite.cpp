// Attention whose operands hold NaNs and infinities gives what the formula gives in double precision over the decompressed
// tokens that each query sees: weights exp(s - max s) / sum. Every variant, generated cases.
#include <algorithm>
#include <memory>
#include <vector>

#include "attention_oracle.h"
#include "data.h"
#include "mustafar/mustafar.h"

namespace {

constexpr int kv_heads = 2, block_tokens = MUSTAFAR_BLOCK_TOKENS;

int below(int count) {
    return static_cast<int>(random_bits() % static_cast<uint32_t>(count));
}

struct Case {
    int32_t variant, dtype, head_dim, group, queries, length, compressed, fresh, window, keep, threads;

    int cached() const { return length - fresh; }
    int heads() const { return kv_heads * group; }
};

Case random_case(int32_t variant, int32_t dtype, int32_t head_dim) {
    Case c{variant, dtype, head_dim, 1 + below(5), 1 + below(8), 0, 0, 0, 0, 1 + below(head_dim), 1 + below(3)};
    c.fresh = below(2) == 0 ? c.queries : 0;
    c.length = c.fresh + below(below(8) == 0 ? 1500 : 150);
    c.compressed = below(c.cached() + 1);
    c.window = below(2) == 0 ? 1 + below(c.length + 1) : 0;
    return c;
}

[[noreturn]] void stop(const Case& c, const char* what) {
    std::fprintf(
        stderr,
        "not_finite.cpp: %s (%s)\nvariant %d, dtype %d, head_dim %d, group %d, queries %d, length %d, compressed %d, "
        "fresh %d, window %d, keep %d, threads %d\n",
        what, mustafar_last_error(), c.variant, c.dtype, c.head_dim, c.group, c.queries, c.length, c.compressed,
        c.fresh, c.window, c.keep, c.threads);
    std::exit(1);
}

// Rows of one operand, [heads, tokens, head_dim].
struct Rows {
    Rows(const Case& c, int head_count, int row_count)
        : heads(head_count), tokens(row_count), head_dim(c.head_dim), dtype(c.dtype),
          memory(std::max<int64_t>(1, int64_t{heads} * tokens * head_dim * element_bytes(dtype))) {
        for (int64_t i = 0; i < int64_t{heads} * tokens * head_dim; ++i)
            store(memory.as(), i, dtype,
                  (below(2) ? 1.0f : -1.0f) * (0.0625f + static_cast<float>(below(1000)) / 1000.0f));
    }

    void set(int head, int token, int channel, float value) {
        const int64_t i = (int64_t{head} * tokens + token) * head_dim + channel;
        if (dtype == MUSTAFAR_DTYPE_F16)
            memory.as<uint16_t>()[i] = static_cast<uint16_t>(std::isnan(value) ? 0x7e00 : value > 0 ? 0x7c00 : 0xfc00);
        else
            store(memory.as(), i, dtype, value);
    }
    // All of them as numbers, [heads, tokens, head_dim].
    std::vector<double> numbers() const {
        std::vector<double> result(static_cast<size_t>(int64_t{heads} * tokens * head_dim));
        for (size_t i = 0; i < result.size(); ++i)
            result[i] = double{load(memory.as(), static_cast<int64_t>(i), dtype)};
        return result;
    }
    // Tokens from `first` on.
    mustafar_dense dense(int first = 0) const {
        return {memory.as<char>() + int64_t{first} * head_dim * element_bytes(dtype), 0, int64_t{tokens} * head_dim,
                head_dim};
    }

    int heads, tokens, head_dim;
    int32_t dtype;
    Memory memory;
};

// The first tokens of keys or values in blocks; rows becomes what is left of them there.
struct Compressed {
    Compressed(const Case& c, const mustafar_context& context, Rows& rows)
        : blocks(std::max(1, (c.compressed + block_tokens - 1) / block_tokens)) {
        tensor.format = {.head_dim = c.head_dim,
                         .dtype = c.dtype,
                         .value_format = MUSTAFAR_VALUE_FORMAT_NATIVE,
                         .pattern = MUSTAFAR_PATTERN_UNSTRUCTURED,
                         .layout = MUSTAFAR_LAYOUT_FIXED,
                         .order = MUSTAFAR_ORDER_PLAIN,
                         .keep = c.keep};
        tensor.page_blocks = blocks;
        tensor.slab_pages = tensor.slab_count = 1;
        tensor.page_capacity = 1;
        if (mustafar_block_bytes(&tensor.format, &tensor.head_stride) != MUSTAFAR_STATUS_OK) stop(c, "block_bytes");
        tensor.head_stride *= blocks;
        tensor.page_bytes = kv_heads * tensor.head_stride;
        tensor.slab_bytes = tensor.page_bytes + MUSTAFAR_PAGE_PADDING;
        memory = std::make_unique<Memory>(tensor.slab_bytes);
        slab = memory->as();
        tensor.slabs = &slab;
        tensor.pages = &page;
        if (c.compressed == 0) return;
        const mustafar_dense dense = rows.dense();
        if (mustafar_compress(&context, 1, kv_heads, c.compressed, &dense, nullptr, nullptr, nullptr, &tensor) !=
                MUSTAFAR_STATUS_OK ||
            mustafar_decompress(&context, 1, kv_heads, 0, c.compressed, &tensor, nullptr, &dense) != MUSTAFAR_STATUS_OK)
            stop(c, "compress");
    }
    Compressed(const Compressed&) = delete;
    Compressed& operator=(const Compressed&) = delete;

    int32_t blocks, page = 0;
    mustafar_blocks tensor{};
    std::unique_ptr<Memory> memory;
    void* slab = nullptr;
};

// Puts the dense tokens before the fresh ones in their places of a ring.
void fill_ring(const Case& c, const Rows& rows, const Rows& ring) {
    const int64_t bytes = int64_t{c.head_dim} * element_bytes(c.dtype);
    for (int head = 0; head < kv_heads; ++head)
        for (int t = c.compressed; t < c.cached(); ++t)
            std::memcpy(ring.memory.as<char>() + (int64_t{head} * ring.tokens + t % ring.tokens) * bytes,
                        rows.memory.as<char>() + (int64_t{head} * rows.tokens + t) * bytes, static_cast<size_t>(bytes));
}

// One value, a whole row, or all rows of a head.
void plant(Rows& rows, int heads, float value) {
    if (rows.tokens == 0) return;
    const int extent = below(6), head = below(heads), token = below(rows.tokens), channel = below(rows.head_dim);
    for (int t = 0; t < rows.tokens; ++t)
        for (int i = 0; i < rows.head_dim; ++i)
            if ((extent == 0 || t == token) && (extent <= 2 || i == channel)) rows.set(head, t, i, value);
}

void test(const Case& c) {
    const mustafar_context context{MUSTAFAR_DEVICE_CPU, 0, c.threads, c.variant, nullptr};
    Rows query(c, c.heads(), c.queries), keys(c, kv_heads, c.length), values(c, kv_heads, c.length);
    const float specials[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()};
    for (int i = below(3); i >= 0; --i) {
        const float value = specials[below(3)];
        switch (below(3)) {
            case 0: plant(query, c.heads(), value); break;
            case 1: plant(keys, kv_heads, value); break;
            default: plant(values, kv_heads, value); break;
        }
    }
    const Compressed packed_keys(c, context, keys), packed_values(c, context, values);
    const int capacity = std::max(1, c.cached() - c.compressed) + below(20);
    const Rows tail_keys(c, kv_heads, capacity), tail_values(c, kv_heads, capacity);
    fill_ring(c, keys, tail_keys);
    fill_ring(c, values, tail_values);
    Rows output(c, c.heads(), c.queries);
    std::vector<float> log_sum_exp(static_cast<size_t>(c.heads() * c.queries));
    mustafar_attention attention{};
    attention.batch = attention.num_slots = 1;
    attention.num_heads = c.heads();
    attention.num_kv_heads = kv_heads;
    attention.num_queries = c.queries;
    attention.num_fresh = c.fresh;
    attention.tail_capacity = capacity;
    attention.max_tokens = c.length;
    attention.sliding_window = c.window;
    attention.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    attention.lengths = &c.length;
    attention.compressed = &c.compressed;
    attention.query = query.dense();
    attention.output = output.dense();
    attention.keys = packed_keys.tensor;
    attention.values = packed_values.tensor;
    attention.tail_keys = tail_keys.dense();
    attention.tail_values = tail_values.dense();
    attention.fresh_keys = keys.dense(c.cached());
    attention.fresh_values = values.dense(c.cached());
    attention.log_sum_exp = log_sum_exp.data();
    if (mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes) != MUSTAFAR_STATUS_OK)
        stop(c, "workspace");
    const Memory workspace(attention.workspace_bytes, 64);
    attention.workspace = workspace.as();
    if (mustafar_attention_forward(&context, &attention) != MUSTAFAR_STATUS_OK) stop(c, "attention");

    // Sums of up to 1500 products of numbers up to 1 in f32, then rounded to the type.
    const double tolerance = c.dtype == MUSTAFAR_DTYPE_F32 ? 1e-4 : c.dtype == MUSTAFAR_DTYPE_F16 ? 2e-3 : 2e-2;
    const std::vector<double> query_numbers = query.numbers(), key_numbers = keys.numbers(),
                              value_numbers = values.numbers(), output_numbers = output.numbers();
    for (int head = 0; head < c.heads(); ++head)
        for (int i = 0; i < c.queries; ++i) {
            const int row = head * c.queries + i;
            const int64_t first_of_head = int64_t{head / c.group} * c.length * c.head_dim;
            const int64_t end = c.length - c.queries + i + 1;
            const Attended expected =
                attended(query_numbers.data() + row * c.head_dim, key_numbers.data() + first_of_head,
                         value_numbers.data() + first_of_head, c.window > 0 ? std::max<int64_t>(0, end - c.window) : 0,
                         end, c.head_dim, double{attention.scale});
            if (!agree(expected.log_sum_exp, double{log_sum_exp[static_cast<size_t>(row)]}, 1e-3))
                stop(c, "log_sum_exp");
            for (int channel = 0; channel < c.head_dim; ++channel) {
                const double right = expected.output[static_cast<size_t>(channel)];
                const double got = output_numbers[static_cast<size_t>(row * c.head_dim + channel)];
                if (agree(right, got, tolerance)) continue;
                std::fprintf(stderr, "head %d, query %d, channel %d: expected %g, got %g\n", head, i, channel, right,
                             got);
                stop(c, "output");
            }
        }
}

}  // namespace

int main() {
    int cases = 0;
    for (int32_t variant = MUSTAFAR_CPU_VARIANT_SCALAR; variant < 32; ++variant) {
        if ((mustafar_cpu_variants() >> variant & 1) == 0) continue;
        for (const int32_t dtype : {MUSTAFAR_DTYPE_F32, MUSTAFAR_DTYPE_F16, MUSTAFAR_DTYPE_BF16})
            for (const int32_t head_dim : {64, 80, 128})
                for (int i = 0; i < 25; ++i, ++cases) test(random_case(variant, dtype, head_dim));
    }
    std::printf("%d cases agree with the formula\n", cases);
}
