// Every instruction set variant that the processor has against the scalar one: what is stored must be equal bit for bit,
// what is computed must agree to rounding.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "data.h"
#include "mustafar/mustafar.h"

namespace {

constexpr int block_tokens = MUSTAFAR_BLOCK_TOKENS;

struct Case {
    int32_t variant, dtype, head_dim, keep, layout, group, queries;
    int64_t tokens;
};

[[noreturn]] void stop(const Case& c, const char* what, int line) {
    std::fprintf(
        stderr,
        "variants.cpp:%d: %s (%s)\nvariant %d, dtype %d, head_dim %d, keep %d, layout %d, group %d, queries %d, "
        "tokens %lld\n",
        line, what, mustafar_last_error(), c.variant, c.dtype, c.head_dim, c.keep, c.layout, c.group, c.queries,
        static_cast<long long>(c.tokens));
    std::exit(1);
}

#define EXPECT(condition) \
    if (!(condition)) stop(c, #condition, __LINE__)
#define EXPECT_OK(call) EXPECT((call) == MUSTAFAR_STATUS_OK)

int words(const Case& c) {
    return (c.head_dim + 31) / 32;
}

enum class Content { numbers, specials };

// Numbers between 2^-6 and 2 of either sign. Specials: in every fifth token infinities, NaNs, subnormals and zeros of
// either sign among them, in every seventh all channels equal, the others any bits at all.
void fill(void* data, int64_t tokens, const Case& c, Content content) {
    const int bytes = element_bytes(c.dtype);
    const uint32_t sign = bytes == 4 ? 0x80000000u : 0x8000u;
    const uint32_t top = c.dtype == MUSTAFAR_DTYPE_F32   ? 0x7f800000u
                         : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x7c00u
                                                         : 0x7f80u;
    for (int64_t t = 0; t < tokens; ++t) {
        const uint32_t same = random_bits();
        for (int channel = 0; channel < c.head_dim; ++channel) {
            const int64_t i = t * c.head_dim + channel;
            const uint32_t random = random_bits();
            if (content == Content::numbers) {
                const float value = std::ldexp(1.0f + static_cast<float>(random & 0xffffu) / 65536.0f,
                                               -static_cast<int>(random >> 16 & 7u) + 1);
                store(data, i, c.dtype, random >> 31 ? -value : value);
                continue;
            }
            const uint32_t specials[] = {
                0u, sign,      top,      top | sign, top + 1u, (top + 1) | sign, top | top >> 1,
                1u, sign | 1u, top - 1u, 2u,         random};
            const uint32_t bits = t % 5 == 0 ? specials[random % std::size(specials)] : t % 7 == 0 ? same : random;
            if (bytes == 4)
                static_cast<uint32_t*>(data)[i] = bits;
            else
                static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits);
        }
    }
}

mustafar_format format_of(const Case& c, int32_t layout) {
    return {.head_dim = c.head_dim,
            .dtype = c.dtype,
            .value_format = MUSTAFAR_VALUE_FORMAT_NATIVE,
            .pattern = MUSTAFAR_PATTERN_UNSTRUCTURED,
            .layout = layout,
            .order = MUSTAFAR_ORDER_PLAIN,
            .keep = layout == MUSTAFAR_LAYOUT_FIXED ? c.keep : 0};
}

// A contiguous tensor [1, heads, tokens, width].
mustafar_dense dense(const void* data, int64_t tokens, int64_t width) {
    return {const_cast<void*>(data), 0, tokens * width, width};
}

int64_t blocks_of(const Case& c) {
    return (c.tokens + block_tokens - 1) / block_tokens;
}

// One head's tokens, compressed by a variant in the case's layout.
struct Compressed {
    Compressed(const Case& c, int32_t variant, const Memory& source, const std::vector<uint32_t>& bitmap) {
        const mustafar_context context = context_of(variant);
        const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
        blocks.format = format_of(c, c.layout);
        blocks.page_blocks = static_cast<int32_t>(blocks_of(c));
        blocks.slab_pages = blocks.slab_count = 1;
        blocks.page_capacity = 1;
        if (c.layout == MUSTAFAR_LAYOUT_FIXED) {
            EXPECT_OK(mustafar_block_bytes(&blocks.format, &blocks.head_stride));
            blocks.head_stride *= blocks_of(c);
            blocks.slab_bytes = blocks.head_stride + MUSTAFAR_PAGE_PADDING;
        } else {
            offsets.resize(static_cast<size_t>(blocks_of(c)) + 1);
            EXPECT_OK(mustafar_offsets(&context, &blocks.format, 1, 1, c.tokens, bitmap.data(), offsets.data(),
                                       &blocks.slab_bytes));
            blocks.offsets = offsets.data();
        }
        page = std::make_unique<Memory>(blocks.slab_bytes);
        address = page->as();
        blocks.slabs = &address;
        blocks.pages = &first_page;
        const uint32_t* given = c.layout == MUSTAFAR_LAYOUT_FIXED ? nullptr : bitmap.data();
        EXPECT_OK(mustafar_compress(&context, 1, 1, c.tokens, &tensor, given, nullptr, &blocks));
    }
    Compressed(const Compressed&) = delete;
    Compressed& operator=(const Compressed&) = delete;

    mustafar_blocks blocks{};
    std::vector<uint32_t> offsets;
    std::unique_ptr<Memory> page;
    void* address = nullptr;
    int32_t first_page = 0;
};

std::vector<uint32_t> pruned(const Case& c, int32_t variant, const Memory& source,
                             int32_t pattern = MUSTAFAR_PATTERN_UNSTRUCTURED) {
    const mustafar_context context = context_of(variant);
    mustafar_format format = format_of(c, MUSTAFAR_LAYOUT_FIXED);
    format.pattern = pattern;
    const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
    std::vector<uint32_t> bitmap(static_cast<size_t>(c.tokens * words(c)));
    EXPECT_OK(mustafar_prune(&context, &format, 1, 1, c.tokens, &tensor, bitmap.data()));
    return bitmap;
}

// Rows of none, all and any channels.
std::vector<uint32_t> any_bitmap(const Case& c) {
    std::vector<uint32_t> bitmap(static_cast<size_t>(c.tokens * words(c)));
    for (int64_t t = 0; t < c.tokens; ++t)
        for (int channel = 0; channel < c.head_dim; ++channel)
            if (t % 9 != 3 && (t % 9 == 5 || random_bits() % 3 == 0))
                bitmap[static_cast<size_t>(t * words(c) + channel / 32)] |= 1u << channel % 32;
    return bitmap;
}

void tensors(const Case& c, Content content) {
    const int64_t bytes = c.tokens * c.head_dim * element_bytes(c.dtype);
    const Memory source(bytes);
    fill(source.as(), c.tokens, c, content);
    const std::vector<uint32_t> bitmap = pruned(c, MUSTAFAR_CPU_VARIANT_SCALAR, source);
    EXPECT(bitmap == pruned(c, c.variant, source));
    const std::vector<uint32_t> chosen = c.layout == MUSTAFAR_LAYOUT_FIXED ? bitmap : any_bitmap(c);
    const Compressed expected(c, MUSTAFAR_CPU_VARIANT_SCALAR, source, chosen), actual(c, c.variant, source, chosen);
    EXPECT(expected.offsets == actual.offsets);
    EXPECT(*expected.page == *actual.page);  // bytes that hold no value were not written either
    // From the start, and from within a block.
    for (const int64_t first : {int64_t{0}, c.tokens / 2 + 1}) {
        const Memory expected_rows(bytes), actual_rows(bytes);
        const mustafar_dense expected_tensor = dense(expected_rows.as(), c.tokens, c.head_dim);
        const mustafar_dense actual_tensor = dense(actual_rows.as(), c.tokens, c.head_dim);
        const mustafar_context scalar = context_of(MUSTAFAR_CPU_VARIANT_SCALAR), context = context_of(c.variant);
        EXPECT_OK(
            mustafar_decompress(&scalar, 1, 1, first, c.tokens - first, &expected.blocks, nullptr, &expected_tensor));
        EXPECT_OK(
            mustafar_decompress(&context, 1, 1, first, c.tokens - first, &actual.blocks, nullptr, &actual_tensor));
        EXPECT(expected_rows == actual_rows);
    }
}

// Which elements balanced patterns keep, of whole and of broken groups of four tokens.
void balanced(const Case& c, Content content) {
    const Memory source(c.tokens * c.head_dim * element_bytes(c.dtype));
    fill(source.as(), c.tokens, c, content);
    for (const int32_t pattern : {MUSTAFAR_PATTERN_BALANCED_KEYS, MUSTAFAR_PATTERN_BALANCED_VALUES}) {
        const std::vector<uint32_t> bitmap = pruned(c, MUSTAFAR_CPU_VARIANT_SCALAR, source, pattern);
        EXPECT(bitmap == pruned(c, c.variant, source, pattern));
        // Values whose last four tokens are not all there may keep less.
        int64_t kept = 0;
        for (const uint32_t word : bitmap) kept += std::popcount(word);
        const int64_t all = c.tokens * c.keep;
        EXPECT(pattern == MUSTAFAR_PATTERN_BALANCED_KEYS || c.tokens % 4 == 0 ? kept == all : kept > 0);
    }
}

constexpr double f32_rounding = 0x1p-24;

// Two results that were rounded to the dtype after an f32 computation may be neighbours in it.
double spacing(int32_t dtype, double value) {
    const double relative = dtype == MUSTAFAR_DTYPE_F32 ? 0x1p-23 : dtype == MUSTAFAR_DTYPE_F16 ? 0x1p-10 : 0x1p-7;
    return std::abs(value) * relative + (dtype == MUSTAFAR_DTYPE_F16 ? 0x1p-24 : 0.0);
}

// AVX-512 BF16 multiplies with probabilities in bf16.
double probability_rounding(const Case& c) {
    return c.variant == MUSTAFAR_CPU_VARIANT_AVX512_BF16 && c.dtype == MUSTAFAR_DTYPE_BF16 ? 0x1p-8 : 0.0;
}

std::vector<float> magnitudes(const Case& c, const Memory& data, int64_t tokens) {
    std::vector<float> result(static_cast<size_t>(tokens * c.head_dim));
    for (size_t i = 0; i < result.size(); ++i) {
        const float value = std::abs(load(data.as(), static_cast<int64_t>(i), c.dtype));
        result[i] = std::isfinite(value) ? value : 0.0f;
    }
    return result;
}

// Sum of |a b| of two rows, pruned channels too: what rounding errors of their product are relative to.
double absolute_product(const Case& c, const std::vector<float>& a, int64_t i, const std::vector<float>& b, int64_t j) {
    double sum = 0;
    for (int channel = 0; channel < c.head_dim; ++channel)
        sum += double{a[static_cast<size_t>(i * c.head_dim + channel)]} *
               double{b[static_cast<size_t>(j * c.head_dim + channel)]};
    return sum;
}

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

void products(const Case& c, bool special) {
    const int element = element_bytes(c.dtype);
    const int rows = c.group * c.queries;
    const Memory source(c.tokens * c.head_dim * element), query(int64_t{rows} * c.head_dim * element);
    fill(source.as(), c.tokens, c, Content::numbers);
    fill(query.as(), rows, c, Content::numbers);
    if (special) plant_specials(source.as(), c.tokens, c);
    const std::vector<uint32_t> bitmap =
        c.layout == MUSTAFAR_LAYOUT_FIXED ? pruned(c, MUSTAFAR_CPU_VARIANT_SCALAR, source) : any_bitmap(c);
    const Compressed compressed(c, MUSTAFAR_CPU_VARIANT_SCALAR, source, bitmap);
    std::vector<float> weights[2];
    const Memory sums[2] = {Memory(int64_t{rows} * c.head_dim * element), Memory(int64_t{rows} * c.head_dim * element)};
    std::vector<float> probabilities(static_cast<size_t>(rows * c.tokens));
    for (float& p : probabilities) p = static_cast<float>(random_bits() % 1000u + 1) / 1000.0f;
    for (int i = 0; i < 2; ++i) {
        const mustafar_context context = context_of(i == 0 ? int32_t{MUSTAFAR_CPU_VARIANT_SCALAR} : c.variant);
        mustafar_product product{};
        product.batch = product.num_kv_heads = 1;
        product.num_heads = c.group;
        product.num_queries = c.queries;
        product.tokens = c.tokens;
        product.blocks = compressed.blocks;
        product.dense = dense(query.as(), c.queries, c.head_dim);
        weights[i].assign(static_cast<size_t>(rows * c.tokens), -1.0f);
        product.weights = dense(weights[i].data(), c.queries, c.tokens);
        product.scale = 0.75f;
        EXPECT_OK(mustafar_key_scores(&context, &product));
        product.dense = dense(sums[i].as(), c.queries, c.head_dim);
        product.weights = dense(probabilities.data(), c.queries, c.tokens);
        EXPECT_OK(mustafar_value_sum(&context, &product));
    }
    const std::vector<float> query_magnitudes = magnitudes(c, query, rows);
    const std::vector<float> token_magnitudes = magnitudes(c, source, c.tokens);
    // A sum of n products in any order is off by at most n roundings of the sum of their magnitudes.
    for (int r = 0; r < rows; ++r)
        for (int64_t t = 0; t < c.tokens; ++t) {
            const size_t i = static_cast<size_t>(r * c.tokens + t);
            const double tolerance =
                2 * c.head_dim * f32_rounding * absolute_product(c, query_magnitudes, r, token_magnitudes, t);
            EXPECT(agree(weights[0][i], weights[1][i], tolerance));
        }
    for (int r = 0; r < rows; ++r)
        for (int channel = 0; channel < c.head_dim; ++channel) {
            double magnitude = 0;
            for (int64_t t = 0; t < c.tokens; ++t)
                magnitude += double{token_magnitudes[static_cast<size_t>(t * c.head_dim + channel)]} *
                             double{probabilities[static_cast<size_t>(r * c.tokens + t)]};
            const int64_t i = int64_t{r} * c.head_dim + channel;
            const double expected = load(sums[0].as(), i, c.dtype), actual = load(sums[1].as(), i, c.dtype);
            const double tolerance =
                (2 * static_cast<double>(c.tokens) * f32_rounding + probability_rounding(c)) * magnitude +
                spacing(c.dtype, expected);
            EXPECT(agree(expected, actual, tolerance));
        }
}

// What a sequence's tokens are stored in.
struct Cache {
    static constexpr int32_t tail_capacity = 64, page_blocks = 8;

    explicit Cache(const Case& c)
        : tail_keys(tail_capacity * c.head_dim * element_bytes(c.dtype)),
          tail_values(tail_capacity * c.head_dim * element_bytes(c.dtype)) {
        blocks.format = format_of(c, MUSTAFAR_LAYOUT_FIXED);
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

void append(const Case& c, int32_t variant, Cache& cache, const Memory& keys, const Memory& values, int32_t count) {
    const mustafar_context context = context_of(variant);
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

enum class Special { none, keys, values };

// A cache grows token by token and by chunks; then queries, several with tokens of their own, attend to it.
void attention(const Case& c, Special special) {
    const int element = element_bytes(c.dtype);
    const int rows = c.group * c.queries;
    const int32_t fresh = c.queries > 1 ? c.queries : 0;
    const int32_t cached = static_cast<int32_t>(c.tokens) - fresh;
    const Memory keys(c.tokens * c.head_dim * element), values(c.tokens * c.head_dim * element);
    const Memory query(int64_t{rows} * c.head_dim * element);
    fill(keys.as(), c.tokens, c, Content::numbers);
    fill(values.as(), c.tokens, c, Content::numbers);
    fill(query.as(), rows, c, Content::numbers);
    if (special == Special::keys) plant_specials(keys.as(), c.tokens, c);
    if (special == Special::values) plant_specials(values.as(), c.tokens, c);
    Cache expected(c), actual(c);
    for (const int32_t count : {cached - 3, 1, 2}) {
        append(c, MUSTAFAR_CPU_VARIANT_SCALAR, expected, keys, values, count);
        append(c, c.variant, actual, keys, values, count);
    }
    EXPECT(*expected.pages[0] == *actual.pages[0] && *expected.pages[1] == *actual.pages[1]);
    EXPECT(expected.tail_keys == actual.tail_keys && expected.tail_values == actual.tail_values);
    EXPECT(expected.length == cached && actual.length == cached && expected.compressed == actual.compressed);

    const int32_t length = static_cast<int32_t>(c.tokens);
    const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    const Memory outputs[2] = {Memory(int64_t{rows} * c.head_dim * element),
                               Memory(int64_t{rows} * c.head_dim * element)};
    std::vector<float> log_sum_exp[2];
    for (int i = 0; i < 2; ++i) {
        const mustafar_context context = context_of(i == 0 ? int32_t{MUSTAFAR_CPU_VARIANT_SCALAR} : c.variant);
        mustafar_attention attention{};
        attention.batch = attention.num_slots = attention.num_kv_heads = 1;
        attention.num_heads = c.group;
        attention.num_queries = c.queries;
        attention.num_fresh = fresh;
        attention.tail_capacity = Cache::tail_capacity;
        attention.max_tokens = length;
        attention.scale = scale;
        attention.lengths = &length;
        attention.compressed = &expected.compressed;
        attention.query = dense(query.as(), c.queries, c.head_dim);
        attention.output = dense(outputs[i].as(), c.queries, c.head_dim);
        attention.keys = expected.tensor(0);
        attention.values = expected.tensor(1);
        attention.tail_keys = dense(expected.tail_keys.as(), Cache::tail_capacity, c.head_dim);
        attention.tail_values = dense(expected.tail_values.as(), Cache::tail_capacity, c.head_dim);
        const int64_t first = int64_t{cached} * c.head_dim * element;
        attention.fresh_keys = dense(keys.as<char>() + first, fresh, c.head_dim);
        attention.fresh_values = dense(values.as<char>() + first, fresh, c.head_dim);
        log_sum_exp[i].resize(static_cast<size_t>(rows));
        attention.log_sum_exp = log_sum_exp[i].data();
        EXPECT_OK(mustafar_attention_workspace(&context, &attention, &attention.workspace_bytes));
        const Memory workspace(attention.workspace_bytes, 64);
        attention.workspace = workspace.as();
        EXPECT_OK(mustafar_attention_forward(&context, &attention));
    }
    const std::vector<float> query_magnitudes = magnitudes(c, query, rows),
                             key_magnitudes = magnitudes(c, keys, c.tokens);
    for (int r = 0; r < rows; ++r) {
        // An error of the scores is a relative one of the probabilities, twice since they are divided by their sum; so
        // are the roundings of that sum and of the powers (4 each, the largest argument's rounding among them).
        double score = 0;
        for (int64_t t = 0; t < c.tokens; ++t)
            score = std::max(score, absolute_product(c, query_magnitudes, r, key_magnitudes, t));
        score *= double{scale};
        const double relative =
            2 * f32_rounding * (2 * c.head_dim * score + 4 * score + static_cast<double>(2 * c.tokens) + 8);
        const double sum = log_sum_exp[0][static_cast<size_t>(r)];
        EXPECT(agree(sum, log_sum_exp[1][static_cast<size_t>(r)], relative + 4 * f32_rounding * std::abs(sum)));
        for (int channel = 0; channel < c.head_dim; ++channel) {
            const int64_t i = int64_t{r} * c.head_dim + channel;
            const double a = load(outputs[0].as(), i, c.dtype), b = load(outputs[1].as(), i, c.dtype);
            EXPECT(agree(a, b, 4 * (relative + probability_rounding(c)) + spacing(c.dtype, a)));  // values are below 4
        }
    }
}

void test(int32_t variant, int32_t dtype, int32_t head_dim) {
    Case c{variant, dtype, head_dim, 0, MUSTAFAR_LAYOUT_FIXED, 1, 1, 0};
    for (const int32_t layout : {MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS})
        for (const int32_t keep : {1, head_dim * 5 / 16, head_dim / 2, head_dim})
            for (const int64_t tokens : {2, 77}) {
                c.layout = layout;
                c.keep = keep;
                c.tokens = tokens;
                for (const Content content : {Content::numbers, Content::specials}) tensors(c, content);
            }
    for (const int32_t of_16 : {5, 6, 7, 8})
        for (const int64_t tokens : {2, 76, 77}) {
            c.keep = head_dim * of_16 / 16;
            c.tokens = tokens;
            if (head_dim % 64 == 0)
                for (const Content content : {Content::numbers, Content::specials}) balanced(c, content);
        }
    c.keep = head_dim * 5 / 16;
    for (const int32_t queries : {1, 3})
        for (const int32_t group : {1, 2, 3, 4, 7, 8, 16}) {
            if (group > 4 && queries > 1) continue;  // both only make rows of them
            c.group = group;
            c.queries = queries;
            c.tokens = 77;
            for (const int32_t layout : {MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS}) {
                c.layout = layout;
                for (const bool special : {false, true}) products(c, special);
            }
            c.layout = MUSTAFAR_LAYOUT_FIXED;
            c.tokens = 141;
            for (const Special special : {Special::none, Special::keys, Special::values}) attention(c, special);
        }
}

}  // namespace

int main() {
    int variants = 0;
    for (int32_t variant = MUSTAFAR_CPU_VARIANT_SCALAR + 1; variant < 32; ++variant) {
        if ((mustafar_cpu_variants() >> variant & 1) == 0) continue;
        ++variants;
        for (const int32_t dtype : {MUSTAFAR_DTYPE_F32, MUSTAFAR_DTYPE_F16, MUSTAFAR_DTYPE_BF16})
            for (const int32_t head_dim : {64, 80, 96, 128, 256}) test(variant, dtype, head_dim);
    }
    std::printf("%d variants agree with the scalar one\n", variants);
}
