// The products of native values and attention to a cache that grew by tokens and by chunks are those of double precision, to
// rounding. Every variant.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "attention_oracle.h"
#include "cases.h"
#include "data.h"
#include "mustafar/mustafar.h"
#include "oracle.h"

namespace {

constexpr double f32_rounding = 0x1p-24;  // relative

// Rows of numbers between 2^-6 and 4 of either sign.
struct Numbers : Memory {
    Numbers(const Case& c, int64_t rows) : Memory(rows * c.head_dim * element_bytes(c.dtype)) {
        for (int64_t i = 0; i < rows * c.head_dim; ++i) {
            const uint32_t random = random_bits();
            const float value = std::ldexp(1.0f + static_cast<float>(random & 0xffffu) / 65536.0f,
                                           -static_cast<int>(random >> 16 & 7u) + 1);
            store(as(), i, c.dtype, random >> 31 ? -value : value);
        }
    }
};

// An infinity, a NaN, a subnormal and a negative zero in some of the tokens.
void plant_specials(void* data, int64_t tokens, const Case& c) {
    const uint32_t top = c.dtype == MUSTAFAR_DTYPE_F32   ? 0x7f800000u
                         : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x7c00u
                                                         : 0x7f80u;
    const uint32_t sign = c.dtype == MUSTAFAR_DTYPE_F32 ? 0x80000000u : 0x8000u;
    const uint32_t specials[] = {top, top | sign, top + 1u, 1u, sign};
    for (int64_t t = 2, i = 0; t < tokens; t += 7, ++i) {
        const int64_t index = t * c.head_dim + static_cast<int64_t>(random_bits() % static_cast<uint32_t>(c.head_dim));
        const uint32_t bits = specials[i % 5];
        if (c.dtype == MUSTAFAR_DTYPE_F32)
            static_cast<uint32_t*>(data)[index] = bits;
        else
            static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(bits);
    }
}

std::vector<double> as_numbers(const Case& c, const void* data, int64_t rows) {
    std::vector<double> result(static_cast<size_t>(rows * c.head_dim));
    for (size_t i = 0; i < result.size(); ++i) result[i] = double{load(data, static_cast<int64_t>(i), c.dtype)};
    return result;
}

// What rounding errors of a product of two rows are relative to: the sum of |a b| of all that is finite.
double absolute_product(const double* a, const double* b, int count) {
    double sum = 0;
    for (int i = 0; i < count; ++i)
        if (std::isfinite(a[i]) && std::isfinite(b[i])) sum += std::abs(a[i] * b[i]);
    return sum;
}

// Rounding of a result to the dtype.
double output_rounding(int32_t dtype, double value) {
    const double relative = dtype == MUSTAFAR_DTYPE_F32 ? f32_rounding : dtype == MUSTAFAR_DTYPE_F16 ? 0x1p-11 : 0x1p-8;
    return std::abs(value) * relative + (dtype == MUSTAFAR_DTYPE_F16 ? 0x1p-25 : 0.0);
}

// AVX-512 BF16 multiplies with probabilities in bf16.
double probability_rounding(const Case& c) {
    return c.variant == MUSTAFAR_CPU_VARIANT_AVX512_BF16 && c.dtype == MUSTAFAR_DTYPE_BF16 ? 0x1p-8 : 0.0;
}

void products(const Case& c, bool special) {
    const int rows = c.group * c.queries;
    const Numbers source(c, c.tokens), query(c, rows), sums(c, rows);
    if (special) plant_specials(source.as(), c.tokens, c);
    const std::vector<uint32_t> bitmap = kept_channels(c, source, c.tokens);
    const Tokens compressed(c, source, c.tokens, bitmap, nullptr);
    std::vector<float> scores(static_cast<size_t>(rows * c.tokens)), probabilities(scores.size());
    for (float& p : probabilities) p = static_cast<float>(random_bits() % 1000u + 1) / 1000.0f;
    const mustafar_context context = context_of(c.variant);
    mustafar_product product{};
    product.batch = product.num_kv_heads = 1;
    product.num_heads = c.group;
    product.num_queries = c.queries;
    product.tokens = c.tokens;
    product.blocks = compressed.blocks;
    product.dense = dense(query.as(), c.queries, c.head_dim);
    product.weights = dense(scores.data(), c.queries, c.tokens);
    product.scale = 0.75f;
    EXPECT_OK(mustafar_key_scores(&context, &product));
    product.dense = dense(sums.as(), c.queries, c.head_dim);
    product.weights = dense(probabilities.data(), c.queries, c.tokens);
    EXPECT_OK(mustafar_value_sum(&context, &product));

    const std::vector<double> queries = as_numbers(c, query.as(), rows), actual_sums = as_numbers(c, sums.as(), rows);
    const std::vector<double> kept = as_numbers(c, decompressed(c, source, bitmap).data(), c.tokens);
    // A sum of n products in any order is off by at most n roundings of the sum of their magnitudes, and by one of the scale.
    for (int r = 0; r < rows; ++r) {
        const double* const q = queries.data() + r * c.head_dim;
        const float* const p = probabilities.data() + r * c.tokens;
        for (int64_t t = 0; t < c.tokens; ++t) {
            const double* const token = kept.data() + t * c.head_dim;
            double expected = 0;
            for (int i = 0; i < c.head_dim; ++i) expected += q[i] * token[i];
            EXPECT(agree(0.75 * expected, double{scores[static_cast<size_t>(r * c.tokens + t)]},
                         (c.head_dim + 1) * f32_rounding * absolute_product(q, token, c.head_dim)));
        }
        for (int i = 0; i < c.head_dim; ++i) {
            double expected = 0, magnitude = 0;
            for (int64_t t = 0; t < c.tokens; ++t) {
                const double term = double{p[t]} * kept[static_cast<size_t>(t * c.head_dim + i)];
                expected += term;
                if (std::isfinite(term)) magnitude += std::abs(term);
            }
            const double tolerance =
                (static_cast<double>(c.tokens + 1) * f32_rounding + probability_rounding(c)) * magnitude;
            EXPECT(agree(0.75 * expected, actual_sums[static_cast<size_t>(r * c.head_dim + i)],
                         tolerance + output_rounding(c.dtype, 0.75 * expected)));
        }
    }
}

// What a sequence's tokens are stored in.
struct Cache {
    static constexpr int32_t tail_capacity = 64, page_blocks = 8;

    explicit Cache(const Case& c)
        : tail_keys(tail_capacity * c.head_dim * element_bytes(c.dtype)),
          tail_values(tail_capacity * c.head_dim * element_bytes(c.dtype)) {
        blocks.format = format_of(c);
        blocks.page_blocks = page_blocks;
        blocks.slab_pages = blocks.slab_count = 1;
        blocks.page_capacity = 1;
        EXPECT_OK(mustafar_block_bytes(&blocks.format, &blocks.head_stride));
        blocks.head_stride *= page_blocks;
        blocks.slab_bytes = blocks.head_stride + MUSTAFAR_PAGE_PADDING;
        for (int i = 0; i < 2; ++i) {
            pages[i] = std::make_unique<Memory>(blocks.slab_bytes);
            addresses[i] = pages[i]->as();
        }
    }

    mustafar_blocks tensor(int i) {
        mustafar_blocks result = blocks;
        result.slabs = &addresses[i];
        result.pages = &first_page;
        return result;
    }

    mustafar_blocks blocks{};
    std::unique_ptr<Memory> pages[2];
    void* addresses[2];
    int32_t first_page = 0;
    Memory tail_keys, tail_values;
    int32_t length = 0, compressed = 0;
};

void append(const Case& c, Cache& cache, const Memory& keys, const Memory& values, int32_t count) {
    const mustafar_context context = context_of(c.variant);
    mustafar_append append{};
    append.batch = append.num_slots = append.num_kv_heads = 1;
    append.num_tokens = count;
    append.group_size = append.local_window = 32;
    append.tail_capacity = Cache::tail_capacity;
    append.max_tokens = Cache::page_blocks * block_tokens;
    int32_t length = 0, compressed = 0;
    append.lengths = &cache.length;
    append.compressed = &cache.compressed;
    append.new_lengths = &length;
    append.new_compressed = &compressed;
    const int64_t first = int64_t{cache.length} * c.head_dim * element_bytes(c.dtype);
    append.new_keys = dense(keys.as<char>() + first, count, c.head_dim);
    append.new_values = dense(values.as<char>() + first, count, c.head_dim);
    append.keys = cache.tensor(0);
    append.values = cache.tensor(1);
    append.tail_keys = dense(cache.tail_keys.as(), Cache::tail_capacity, c.head_dim);
    append.tail_values = dense(cache.tail_values.as(), Cache::tail_capacity, c.head_dim);
    EXPECT_OK(mustafar_append_tokens(&context, &append));
    cache.length = length;
    cache.compressed = compressed;
}

// What the blocks and the ring hold of the tokens that are cached. Returns the tokens as attention sees them.
std::vector<double> stored(const Case& c, const Cache& cache, const Memory& page, const Memory& tail,
                           const Memory& rows) {
    const std::vector<uint32_t> bitmap = pruned(c, rows, cache.compressed);
    const std::vector<uint8_t> blocks = native_blocks(c, rows, bitmap), kept = decompressed(c, rows, bitmap);
    EXPECT(std::memcmp(page.as(), blocks.data(), blocks.size()) == 0);
    const int64_t row = c.head_dim * element_bytes(c.dtype);
    for (int64_t t = cache.compressed; t < cache.length; ++t)
        EXPECT(std::memcmp(tail.as<char>() + t % Cache::tail_capacity * row, rows.as<char>() + t * row,
                           static_cast<size_t>(row)) == 0);
    std::vector<double> result = as_numbers(c, rows.as(), c.tokens);
    const std::vector<double> first = as_numbers(c, kept.data(), cache.compressed);
    std::copy(first.begin(), first.end(), result.begin());
    return result;
}

enum class Special { none, keys, values };

// A cache grows token by token and by chunks; then queries, several with tokens of their own, attend to it.
void attention(const Case& c, Special special) {
    const int rows = c.group * c.queries;
    const int32_t fresh = c.queries > 1 ? c.queries : 0;
    const int32_t cached = static_cast<int32_t>(c.tokens) - fresh;
    const Numbers keys(c, c.tokens), values(c, c.tokens), query(c, rows);
    if (special == Special::keys) plant_specials(keys.as(), c.tokens, c);
    if (special == Special::values) plant_specials(values.as(), c.tokens, c);
    Cache cache(c);
    for (const int32_t count : {cached - 3, 1, 2}) append(c, cache, keys, values, count);
    EXPECT(cache.length == cached);
    const std::vector<double> seen_keys = stored(c, cache, *cache.pages[0], cache.tail_keys, keys),
                              seen_values = stored(c, cache, *cache.pages[1], cache.tail_values, values);

    const int32_t length = static_cast<int32_t>(c.tokens);
    const mustafar_context context = context_of(c.variant);
    const Numbers output(c, rows);
    std::vector<float> log_sum_exp(static_cast<size_t>(rows));
    mustafar_attention attention{};
    attention.batch = attention.num_slots = attention.num_kv_heads = 1;
    attention.num_heads = c.group;
    attention.num_queries = c.queries;
    attention.num_fresh = fresh;
    attention.tail_capacity = Cache::tail_capacity;
    attention.max_tokens = length;
    attention.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    attention.lengths = &length;
    attention.compressed = &cache.compressed;
    attention.query = dense(query.as(), c.queries, c.head_dim);
    attention.output = dense(output.as(), c.queries, c.head_dim);
    attention.keys = cache.tensor(0);
    attention.values = cache.tensor(1);
    attention.tail_keys = dense(cache.tail_keys.as(), Cache::tail_capacity, c.head_dim);
    attention.tail_values = dense(cache.tail_values.as(), Cache::tail_capacity, c.head_dim);
    const int64_t first = int64_t{cached} * c.head_dim * element_bytes(c.dtype);
    attention.fresh_keys = dense(keys.as<char>() + first, fresh, c.head_dim);
    attention.fresh_values = dense(values.as<char>() + first, fresh, c.head_dim);
    attention.log_sum_exp = log_sum_exp.data();
    EXPECT_OK(mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes));
    const Memory workspace(attention.workspace_bytes, 64);
    attention.workspace = workspace.as();
    EXPECT_OK(mustafar_attention_forward(&context, &attention));

    const std::vector<double> queries = as_numbers(c, query.as(), rows), actual = as_numbers(c, output.as(), rows);
    const double scale = attention.scale;
    for (int r = 0; r < rows; ++r) {
        const double* const q = queries.data() + r * c.head_dim;
        const int64_t end = c.tokens - c.queries + r % c.queries + 1;
        const Attended expected = attended(q, seen_keys.data(), seen_values.data(), 0, end, c.head_dim, scale);
        // An error of the scores is a relative one of the probabilities, twice since they are divided by their sum; so
        // are the roundings of that sum and of the powers (4 each, the largest argument's rounding among them).
        double score = 0;
        for (int64_t t = 0; t < end; ++t)
            score = std::max(score, absolute_product(q, seen_keys.data() + t * c.head_dim, c.head_dim));
        const double relative =
            2 * f32_rounding * ((c.head_dim + 4) * score * scale + static_cast<double>(c.tokens) + 8);
        EXPECT(agree(expected.log_sum_exp, double{log_sum_exp[static_cast<size_t>(r)]},
                     relative + 4 * f32_rounding * std::abs(expected.log_sum_exp)));
        for (int i = 0; i < c.head_dim; ++i) {
            const double right = expected.output[static_cast<size_t>(i)];
            EXPECT(agree(right, actual[static_cast<size_t>(r * c.head_dim + i)],  // values are below 4
                         4 * (relative + probability_rounding(c)) + output_rounding(c.dtype, right)));
        }
    }
}

void test(int32_t variant, int32_t dtype, int32_t head_dim) {
    const int32_t keep = head_dim * 5 / 16;
    Case fixed{variant,
               dtype,
               head_dim,
               MUSTAFAR_VALUE_FORMAT_NATIVE,
               MUSTAFAR_PATTERN_UNSTRUCTURED,
               MUSTAFAR_LAYOUT_FIXED,
               keep,
               MUSTAFAR_ORDER_PLAIN,
               false};
    Case offsets = fixed;
    offsets.layout = MUSTAFAR_LAYOUT_OFFSETS;
    offsets.keep = 0;
    for (const int32_t queries : {1, 3})
        for (const int32_t group : {1, 2, 3, 4, 7, 8, 16}) {
            if (group > 4 && queries > 1) continue;  // both only make rows of them
            if (group > 3 && head_dim != 80 && head_dim != 128) continue;
            for (Case c : {fixed, offsets}) {
                c.group = group;
                c.queries = queries;
                c.tokens = 77;
                for (const bool special : {false, true}) products(c, special);
                c.tokens = 141;
                if (c.layout == MUSTAFAR_LAYOUT_FIXED)
                    for (const Special special : {Special::none, Special::keys, Special::values}) attention(c, special);
            }
        }
}

}  // namespace

int main() {
    for_all(test);
    std::puts("attention and products are those of double precision");
}
