// Products and attention with 8- and 4-bit values, all channels kept, and channel scales of keys, against double precision.
// Every variant.
#include "integers.h"
#include "small_stack.h"

namespace {

struct Queries {
    Queries(const Case& c, int rows) : memory(int64_t{rows} * c.head_dim * element_bytes(c.dtype)) {
        for (int64_t i = 0; i < int64_t{rows} * c.head_dim; ++i)
            store(memory.as(), i, c.dtype,
                  (random_bits() % 2 ? 1.0f : -1.0f) * (0.01f + static_cast<float>(random_bits() % 1000) / 500.0f));
    }
    Memory memory;
};

// Integers may be multiplied by queries and weights of 15 bits where these are halves; else in f32.
double rounding(const Case& c) {
    return c.dtype == MUSTAFAR_DTYPE_F32 ? 0x1p-20 : 0x1p-14;
}

// Key scores and sums of values in double.
void products(const Case& c, int rows) {
    constexpr int64_t tokens = 77;
    const mustafar_context context = context_of(c.variant);
    const Memory source(tokens * c.head_dim * element_bytes(c.dtype));
    fill(source.as(), tokens, c, rows % 2 == 0);
    const std::vector<uint32_t> bitmap = kept_channels(c, source, tokens);
    const std::vector<float> factors = any_factors(c);
    const float* const given = c.with_factors ? factors.data() : nullptr;
    const Tokens compressed(c, source, tokens, bitmap, given);
    std::vector<Quantized> expected;
    const std::vector<std::vector<float>> all = rows_of(c, source, 0, tokens);
    for (int64_t t = 0; t < tokens; ++t)
        expected.push_back(quantized(c, all[static_cast<size_t>(t)], bits_of(c, bitmap, t), given));

    const Queries query(c, rows);
    const std::vector<std::vector<float>> queries = rows_of(c, query.memory, 0, rows);
    std::vector<float> weights(static_cast<size_t>(rows * tokens), -1.0f);
    mustafar_product product{};
    product.batch = product.num_kv_heads = product.num_queries = 1;
    product.num_heads = rows;
    product.tokens = tokens;
    product.blocks = compressed.blocks;
    product.dense = dense(query.memory.as(), 1, c.head_dim);
    product.weights = dense(weights.data(), 1, tokens);
    product.scale = 0.75f;
    product.key_factors = given;
    EXPECT_OK(mustafar_key_scores(&context, &product));
    for (int r = 0; r < rows; ++r) {
        const std::vector<float>& q = queries[static_cast<size_t>(r)];
        double largest = 0;
        for (size_t i = 0; i < q.size(); ++i)
            largest = std::max(largest, std::abs(double{q[i]} * double{given ? given[i] : 1.0f}));
        for (int64_t t = 0; t < tokens; ++t) {
            double score = 0, magnitude = 0;
            for (size_t i = 0; i < q.size(); ++i) {
                const double value = expected[static_cast<size_t>(t)].row[i];
                score += double{q[i]} * double{given ? given[i] : 1.0f} * value;
                magnitude += largest * std::abs(value);
            }
            // Rotated rows have sums of up to so many times that.
            if (c.pattern == MUSTAFAR_PATTERN_ALL_ROTATED) magnitude *= std::sqrt(static_cast<double>(c.head_dim));
            EXPECT(agree(0.75 * score, double{weights[static_cast<size_t>(r * tokens + t)]}, rounding(c) * magnitude));
        }
    }

    for (float& weight : weights) weight = static_cast<float>(random_bits() % 1000u) / 1000.0f;
    const Memory output(int64_t{rows} * c.head_dim * element_bytes(c.dtype));
    product.dense = dense(output.as(), 1, c.head_dim);
    product.key_factors = nullptr;
    if (c.pattern == MUSTAFAR_PATTERN_ALL_ROTATED) {
        EXPECT(mustafar_value_sum(&context, &product) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
        return;
    }
    EXPECT_OK(mustafar_value_sum(&context, &product));
    for (int r = 0; r < rows; ++r) {
        double largest = 0;
        for (int64_t t = 0; t < tokens; ++t) {
            const double part = double{weights[static_cast<size_t>(r * tokens + t)]} *
                                double{f16_to_f32(expected[static_cast<size_t>(t)].scale)};
            if (std::isfinite(part)) largest = std::max(largest, part);
        }
        for (int i = 0; i < c.head_dim; ++i) {
            double sum = 0, magnitude = 0;
            for (int64_t t = 0; t < tokens; ++t) {
                const Quantized& token = expected[static_cast<size_t>(t)];
                const double value = token.row[static_cast<size_t>(i)],
                             weight = weights[static_cast<size_t>(r * tokens + t)];
                sum += weight * value;
                const double scale = f16_to_f32(token.scale);
                if (scale > 0) magnitude += largest * std::abs(value) / scale;
            }
            const double spacing = std::abs(sum) * (c.dtype == MUSTAFAR_DTYPE_F32   ? 0.0
                                                    : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x1p-11
                                                                                    : 0x1p-8);
            EXPECT(agree(0.75 * sum, double{load(output.as(), int64_t{r} * c.head_dim + i, c.dtype)},
                         rounding(c) * magnitude + spacing + 0x1p-24));
        }
    }
}

// A sequence whose keys and values are stored in formats of their own.
struct Cache {
    static constexpr int32_t tail_capacity = 64, page_blocks = 12;

    Cache(const Case& keys, const Case& values)
        : c(keys), tail_keys(tail_bytes()), tail_values(tail_bytes()),
          factors(static_cast<size_t>(c.head_dim), std::numeric_limits<float>::quiet_NaN()) {
        const Case* const cases[] = {&keys, &values};
        for (int i = 0; i < 2; ++i) {
            blocks[i].format = format_of(*cases[i]);
            blocks[i].page_blocks = page_blocks;
            blocks[i].slab_pages = blocks[i].slab_count = 1;
            blocks[i].page_capacity = 1;
            EXPECT_OK(mustafar_block_bytes(&blocks[i].format, &blocks[i].head_stride));
            blocks[i].head_stride *= page_blocks;
            blocks[i].slab_bytes = blocks[i].head_stride + MUSTAFAR_PAGE_PADDING;
            slabs[i] = std::make_unique<Memory>(blocks[i].slab_bytes);
            addresses[i] = slabs[i]->as();
            blocks[i].slabs = &addresses[i];
            blocks[i].pages = &first_page;
        }
    }
    int64_t tail_bytes() const { return int64_t{tail_capacity} * c.head_dim * element_bytes(c.dtype); }
    float* factors_or_null() { return c.with_factors ? factors.data() : nullptr; }

    void append(const Memory& keys, const Memory& values, int32_t count) {
        const mustafar_context context = context_of(c.variant);
        mustafar_append append{};
        append.batch = append.num_slots = append.num_kv_heads = 1;
        append.num_tokens = count;
        append.group_size = append.local_window = 32;
        append.tail_capacity = tail_capacity;
        append.max_tokens = page_blocks * block_tokens;
        int32_t new_length = 0, new_compressed = 0;
        append.lengths = &length;
        append.compressed = &compressed;
        append.new_lengths = &new_length;
        append.new_compressed = &new_compressed;
        const int64_t first = int64_t{length} * c.head_dim * element_bytes(c.dtype);
        append.new_keys = dense(keys.as<char>() + first, count, c.head_dim);
        append.new_values = dense(values.as<char>() + first, count, c.head_dim);
        append.keys = blocks[0];
        append.values = blocks[1];
        append.key_factors = factors_or_null();
        append.tail_keys = dense(tail_keys.as(), tail_capacity, c.head_dim);
        append.tail_values = dense(tail_values.as(), tail_capacity, c.head_dim);
        EXPECT_OK(mustafar_append_tokens(&context, &append));
        if (compressed == 0 && new_compressed > 0) first_compressed = new_compressed;
        length = new_length;
        compressed = new_compressed;
    }

    const Case c;
    mustafar_blocks blocks[2] = {};
    std::unique_ptr<Memory> slabs[2];
    void* addresses[2];
    int32_t first_page = 0;
    Memory tail_keys, tail_values;
    std::vector<float> factors;
    int32_t length = 0, compressed = 0, first_compressed = 0;
};

// What a query sees of a cache: restored blocks, then dense tokens.
std::vector<std::vector<float>> visible(const Case& c, const Cache& cache, int i, const Memory& source,
                                        const float* factors, int32_t length) {
    const mustafar_context context = context_of(c.variant);
    Case exact = c;
    exact.dtype = MUSTAFAR_DTYPE_F32;  // q * scale as it is, not rounded
    mustafar_blocks blocks = cache.blocks[i];
    if (blocks.format.value_format != MUSTAFAR_VALUE_FORMAT_NATIVE)
        blocks.format.dtype = MUSTAFAR_DTYPE_F32;
    else
        exact.dtype = c.dtype;
    const Memory restored(int64_t{cache.compressed} * c.head_dim * element_bytes(exact.dtype));
    const mustafar_dense target = dense(restored.as(), cache.compressed, c.head_dim);
    EXPECT_OK(mustafar_decompress(&context, 1, 1, 0, cache.compressed, &blocks, nullptr, &target));
    std::vector<std::vector<float>> rows = rows_of(exact, restored, 0, cache.compressed);
    if (factors != nullptr)
        for (std::vector<float>& row : rows)
            for (size_t channel = 0; channel < row.size(); ++channel) row[channel] *= factors[channel];
    for (const std::vector<float>& row : rows_of(c, source, cache.compressed, length - cache.compressed))
        rows.push_back(row);
    return rows;
}

// A cache grows; its factors and blocks are those of a whole tensor; attention is that of double precision.
void attention(const Case& keys_case, const Case& values_case, int32_t length, int group, int queries, int32_t window) {
    const Case& c = keys_case;
    const int rows = group * queries;
    const int32_t fresh = queries > 1 ? queries : 0, cached = length - fresh;
    const Memory keys(int64_t{length} * c.head_dim * element_bytes(c.dtype)),
        values(int64_t{length} * c.head_dim * element_bytes(c.dtype));
    fill(keys.as(), length, c, false);
    fill(values.as(), length, c, false);
    Cache cache(keys_case, values_case);
    for (const int32_t count : {50, 46, 1, cached - 97}) cache.append(keys, values, count);
    EXPECT(cache.length == cached && cache.compressed == (cached - 32) / 32 * 32 && cache.first_compressed == 64);

    const std::vector<float> factors = key_factors(rows_of(c, keys, 0, cache.first_compressed), c.head_dim);
    const float* const given = c.with_factors ? factors.data() : nullptr;
    if (c.with_factors) EXPECT(std::memcmp(factors.data(), cache.factors.data(), factors.size() * sizeof(float)) == 0);
    const Tokens whole_keys(keys_case, keys, cache.compressed, {}, given);
    const Tokens whole_values(values_case, values, cache.compressed, {}, nullptr);
    const size_t key_bytes = static_cast<size_t>(whole_keys.blocks.head_stride),
                 value_bytes = static_cast<size_t>(whole_values.blocks.head_stride);
    EXPECT(std::memcmp(whole_keys.memory->as(), cache.addresses[0], key_bytes) == 0);
    EXPECT(std::memcmp(whole_values.memory->as(), cache.addresses[1], value_bytes) == 0);

    const Queries query(c, rows);
    const Memory output(int64_t{rows} * c.head_dim * element_bytes(c.dtype));
    std::vector<float> log_sum_exp(static_cast<size_t>(rows));
    const mustafar_context context = context_of(c.variant);
    mustafar_attention attention{};
    attention.batch = attention.num_slots = attention.num_kv_heads = 1;
    attention.num_heads = group;
    attention.num_queries = queries;
    attention.num_fresh = fresh;
    attention.tail_capacity = Cache::tail_capacity;
    attention.max_tokens = length;
    attention.sliding_window = window;
    attention.scale = 0.25f / std::sqrt(static_cast<float>(c.head_dim));
    attention.lengths = &length;
    attention.compressed = &cache.compressed;
    attention.query = dense(query.memory.as(), queries, c.head_dim);
    attention.output = dense(output.as(), queries, c.head_dim);
    attention.keys = cache.blocks[0];
    attention.values = cache.blocks[1];
    attention.key_factors = given;
    attention.tail_keys = dense(cache.tail_keys.as(), Cache::tail_capacity, c.head_dim);
    attention.tail_values = dense(cache.tail_values.as(), Cache::tail_capacity, c.head_dim);
    const int64_t first = int64_t{cached} * c.head_dim * element_bytes(c.dtype);
    attention.fresh_keys = dense(keys.as<char>() + first, fresh, c.head_dim);
    attention.fresh_values = dense(values.as<char>() + first, fresh, c.head_dim);
    attention.log_sum_exp = log_sum_exp.data();
    EXPECT_OK(mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes));
    const Memory workspace(attention.workspace_bytes, 64);
    attention.workspace = workspace.as();
    EXPECT_OK(on_small_stack([&] { return mustafar_attention_forward(&context, &attention); }));

    const auto seen_keys = visible(c, cache, 0, keys, given, length),
               seen_values = visible(c, cache, 1, values, nullptr, length);
    const auto query_rows = rows_of(c, query.memory, 0, rows);
    for (int r = 0; r < rows; ++r) {
        const std::vector<float>& q = query_rows[static_cast<size_t>(r)];
        const int32_t last = length - queries + r % queries, begin = window > 0 ? std::max(0, last + 1 - window) : 0;
        std::vector<double> scores;
        double top = -1e300, score_error = 0, value_top = 0;
        for (int32_t t = begin; t <= last; ++t) {
            double score = 0, magnitude = 0, largest = 0;
            for (size_t i = 0; i < q.size(); ++i) {
                const double key = seen_keys[static_cast<size_t>(t)][i];
                score += double{q[i]} * key;
                magnitude += std::abs(key / double{given ? given[i] : 1.0f});
                largest = std::max(largest, std::abs(double{q[i]} * double{given ? given[i] : 1.0f}));
                value_top = std::max(value_top, std::abs(double{seen_values[static_cast<size_t>(t)][i]}));
            }
            scores.push_back(score * double{attention.scale});
            top = std::max(top, scores.back());
            if (c.pattern == MUSTAFAR_PATTERN_ALL_ROTATED) magnitude *= std::sqrt(static_cast<double>(c.head_dim));
            score_error = std::max(score_error, rounding(c) * largest * magnitude * double{attention.scale});
        }
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - top);
        // bf16 variants multiply with probabilities in bf16.
        const double probability = c.dtype == MUSTAFAR_DTYPE_BF16 ? 0x1p-8 : rounding(c);
        EXPECT(agree(top + std::log(sum), double{log_sum_exp[static_cast<size_t>(r)]},
                     score_error + 1e-5 * std::abs(top) + 1e-5));
        for (int i = 0; i < c.head_dim; ++i) {
            double value = 0, magnitude = 0;
            for (size_t t = 0; t < scores.size(); ++t) {
                const double v = seen_values[static_cast<size_t>(begin) + t][static_cast<size_t>(i)];
                value += scores[t] / sum * v;
                magnitude += scores[t] / sum * std::abs(v);
            }
            const double spacing = std::abs(value) * (c.dtype == MUSTAFAR_DTYPE_F32   ? 0x1p-20
                                                      : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x1p-11
                                                                                      : 0x1p-8);
            const double tolerance = 2 * (score_error + probability) * magnitude + rounding(c) * value_top + spacing;
            EXPECT(agree(value, double{load(output.as(), int64_t{r} * c.head_dim + i, c.dtype)}, tolerance));
        }
    }
}

// Each format once as keys and once as values, beside native ones too.
void test(int32_t variant, int32_t dtype, int32_t head_dim) {
    std::vector<Case> formats = integer_formats(variant, dtype, head_dim);
    for (size_t i = 0; i < formats.size(); ++i) {
        formats[i].with_factors = i % 2 == 0;
        products(formats[i], static_cast<int>(1 + i % 8));
    }
    formats.push_back({variant, dtype, head_dim, 0, MUSTAFAR_PATTERN_ALL, MUSTAFAR_LAYOUT_FIXED, head_dim, 0, false});
    std::erase_if(formats, [](const Case& c) { return c.layout != MUSTAFAR_LAYOUT_FIXED; });
    for (size_t i = 0; i < formats.size(); ++i) {
        Case keys = formats[i];
        Case values = formats[(i * 5 + 3) % formats.size()];
        if (values.pattern == MUSTAFAR_PATTERN_ALL_ROTATED) values.pattern = MUSTAFAR_PATTERN_ALL;
        keys.with_factors = keys.value_format != 0 && i % 3 != 0;
        const int queries = i % 2 == 0 ? 1 : 3;
        attention(keys, values, 150, static_cast<int>(1 + i % 8), queries, i % 4 == 3 ? 70 : 0);
    }
}

// More blocks than are multiplied at once; once with every number of query heads.
void test_many_blocks(int32_t variant, int32_t dtype, int32_t head_dim) {
    for (const int32_t value_format : {MUSTAFAR_VALUE_FORMAT_INT8, MUSTAFAR_VALUE_FORMAT_INT4}) {
        Case all{variant,  dtype, head_dim, value_format, MUSTAFAR_PATTERN_ALL, MUSTAFAR_LAYOUT_FIXED,
                 head_dim, 0,     false};
        Case all_keys = all, some = all;
        all_keys.order = MUSTAFAR_ORDER_KEY_QUADS;
        all.order = MUSTAFAR_ORDER_VALUE_QUADS;
        some.pattern = MUSTAFAR_PATTERN_UNSTRUCTURED;
        some.keep = head_dim * 5 / 16 + 1;
        const bool every_group = dtype == MUSTAFAR_DTYPE_F16 && head_dim == 128;
        for (int group = every_group ? 1 : 7; group <= (every_group ? 9 : 7); ++group) {
            attention(all_keys, all, 330, group, 1, 0);
            attention(some, some, 330, group, 1, 0);
        }
    }
}

}  // namespace

int main() {
    for_all(test);
    for_all(test_many_blocks);
    std::puts("products with integers are those of double precision");
}
