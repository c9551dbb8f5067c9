// 8- and 4-bit values, all channels kept, and channel scales of keys: what is stored is, byte for byte, what the header and
// docs/format.md say. Every variant.
#include "integers.h"

namespace {

// The bytes of a block of integers in any order.
std::vector<uint8_t> block_bytes(const Case& c, const std::vector<Quantized>& tokens,
                                 const std::vector<uint32_t>& bitmap) {
    std::vector<uint8_t> bytes;
    const bool wide = c.value_format == MUSTAFAR_VALUE_FORMAT_INT8, all = keeps_all(c);
    if (!all)
        for (int i = 0; i < block_tokens * words(c); ++i)
            for (int byte = 0; byte < 4; ++byte)
                bytes.push_back(static_cast<size_t>(i) < bitmap.size()
                                    ? static_cast<uint8_t>(bitmap[static_cast<size_t>(i)] >> 8 * byte)
                                    : uint8_t{0});
    std::vector<uint8_t> values;
    if (all && c.order != MUSTAFAR_ORDER_PLAIN) {
        const auto integer = [&](int t, int channel) {
            return static_cast<size_t>(t) < tokens.size()
                       ? tokens[static_cast<size_t>(t)].integers[static_cast<size_t>(channel)]
                       : 0;
        };
        // As docs/format.md lists them: loops, the first one outermost.
        const int halves = wide ? 2 : 1;
        const auto add = [&](int t, int channel) {
            values.push_back(static_cast<uint8_t>(
                wide ? integer(t, channel) + 128 : integer(t, channel) + 8 + 16 * (integer(t + 16, channel) + 8)));
        };
        if (c.order == MUSTAFAR_ORDER_KEY_QUADS) {
            for (int half = 0; half < halves; ++half)
                for (int quad = 0; quad < c.head_dim / 4; ++quad)
                    for (int t = 0; t < 16; ++t)
                        for (int i = 0; i < 4; ++i) add(16 * half + t, 4 * quad + i);
        } else {
            for (int group = 0; group < c.head_dim / 16; ++group)
                for (int quad = 0; quad < 4 * halves; ++quad)
                    for (int channel = 0; channel < 16; ++channel)
                        for (int i = 0; i < 4; ++i) add(4 * quad + i, 16 * group + channel);
        }
    } else {
        std::vector<uint8_t> codes;
        for (const Quantized& token : tokens)
            for (const int q : token.integers) codes.push_back(static_cast<uint8_t>(wide ? q : q < 0 ? 8 - q : q));
        for (size_t i = 0; i < codes.size(); i += wide ? 1 : 2)
            values.push_back(
                static_cast<uint8_t>(wide ? codes[i] : codes[i] | (i + 1 < codes.size() ? codes[i + 1] : 0) << 4));
        const int full = c.layout == MUSTAFAR_LAYOUT_FIXED ? block_tokens * c.keep / (wide ? 1 : 2) : 0;
        while (static_cast<int>(values.size()) < full || values.size() % 16 != 0) values.push_back(0);
    }
    bytes.insert(bytes.end(), values.begin(), values.end());
    for (size_t t = 0; t < block_tokens; ++t) {
        const uint16_t scale = t < tokens.size() ? tokens[t].scale : uint16_t{0};
        bytes.push_back(static_cast<uint8_t>(scale));
        bytes.push_back(static_cast<uint8_t>(scale >> 8));
    }
    return bytes;
}

// Compresses to the bytes of the header's rules, decompresses to its numbers, and goes from order to order.
void tensors(const Case& c) {
    constexpr int64_t tokens = 45;
    const mustafar_context context = context_of(c.variant);
    const Memory source(tokens * c.head_dim * element_bytes(c.dtype));
    fill(source.as(), tokens, c, true);
    const std::vector<uint32_t> bitmap = kept_channels(c, source, tokens);
    const std::vector<float> factors = any_factors(c);
    const float* const given = c.with_factors ? factors.data() : nullptr;
    const Tokens compressed(c, source, tokens, bitmap, given);

    std::vector<Quantized> expected;
    const std::vector<std::vector<float>> rows = rows_of(c, source, 0, tokens);
    for (int64_t t = 0; t < tokens; ++t)
        expected.push_back(quantized(c, rows[static_cast<size_t>(t)], bits_of(c, bitmap, t), given));
    const uint8_t* actual = compressed.memory->as<uint8_t>();
    for (int64_t first = 0; first < tokens; first += block_tokens) {
        const int64_t end = std::min(tokens, first + block_tokens);
        const std::vector<uint8_t> bytes =
            block_bytes(c, {expected.begin() + first, expected.begin() + end},
                        {bitmap.begin() + first * words(c), bitmap.begin() + end * words(c)});
        EXPECT(std::memcmp(actual, bytes.data(), bytes.size()) == 0);
        actual += bytes.size();
    }
    EXPECT(actual + MUSTAFAR_PAGE_PADDING == compressed.memory->as<uint8_t>() + compressed.blocks.slab_bytes);

    for (const int64_t first : {int64_t{0}, int64_t{39}}) {
        const Memory restored((tokens - first) * c.head_dim * element_bytes(c.dtype));
        const mustafar_dense target = dense(restored.as(), tokens - first, c.head_dim);
        EXPECT_OK(mustafar_decompress(&context, 1, 1, first, tokens - first, &compressed.blocks, given, &target));
        for (int64_t t = first; t < tokens; ++t)
            for (int i = 0; i < c.head_dim; ++i) {
                float value = expected[static_cast<size_t>(t)].row[static_cast<size_t>(i)];
                if (given) value *= given[i];
                EXPECT(agree(double{rounded(c.dtype, value)},
                             double{load(restored.as(), (t - first) * c.head_dim + i, c.dtype)}, 0.0));
            }
    }

    if (c.layout != MUSTAFAR_LAYOUT_FIXED) return;
    for (const int32_t order : {MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_KEY_QUADS, MUSTAFAR_ORDER_VALUE_QUADS}) {
        Case other = c;
        other.order = order;
        const Tokens same(other, source, tokens, bitmap, given);
        const Memory copy(compressed.blocks.slab_bytes);
        std::memset(copy.as(), 0, static_cast<size_t>(same.blocks.head_stride));
        mustafar_blocks target = same.blocks;
        void* const address = copy.as();
        target.slabs = &address;
        EXPECT_OK(mustafar_convert(&context, 1, 1, tokens, &compressed.blocks, &target));
        EXPECT(copy == *same.memory);
    }
}

// A row that only its rotation takes beyond all numbers: integers of zero, and a scale that is none.
void rotated_beyond_numbers(int32_t variant) {
    const Case c{variant,
                 MUSTAFAR_DTYPE_BF16,
                 128,
                 MUSTAFAR_VALUE_FORMAT_INT4,
                 MUSTAFAR_PATTERN_ALL_ROTATED,
                 MUSTAFAR_LAYOUT_FIXED,
                 128,
                 MUSTAFAR_ORDER_PLAIN,
                 false};
    const Memory source(128 * 2);
    for (int i = 0; i < 128; ++i) store(source.as(), i, c.dtype, 3e38f);
    const Tokens compressed(c, source, 1, {}, nullptr);
    const uint8_t* const block = compressed.memory->as<uint8_t>();
    EXPECT(std::all_of(block, block + 2048, [](uint8_t byte) { return byte == 0; }));
    EXPECT(block[2048] == 0x00 && block[2049] == 0x7e);
}

// Factors of the whole call, of several heads and of channels without a finite largest number.
void factors(const Case& c) {
    constexpr int64_t heads = 2, tokens = 9;
    const mustafar_context context = context_of(c.variant);
    const Memory source(heads * tokens * c.head_dim * element_bytes(c.dtype));
    fill(source.as(), heads * tokens, c, true);
    for (int64_t t = 0; t < heads * tokens; ++t) {
        store(source.as(), t * c.head_dim + 5, c.dtype, 2000.0f);  // reaches the largest factor or nearly
        std::memset(source.as<char>() + (t * c.head_dim + 7) * element_bytes(c.dtype), 0,
                    static_cast<size_t>(element_bytes(c.dtype)));
    }
    std::vector<float> actual(static_cast<size_t>(heads * c.head_dim), std::numeric_limits<float>::quiet_NaN());
    const mustafar_dense tensor = dense(source.as(), tokens, c.head_dim);
    EXPECT_OK(mustafar_key_factors(&context, c.dtype, c.head_dim, 1, heads, tokens, &tensor, actual.data()));
    for (int64_t h = 0; h < heads; ++h) {
        const std::vector<float> expected = key_factors(rows_of(c, source, h * tokens, tokens), c.head_dim);
        EXPECT(std::memcmp(expected.data(), actual.data() + h * c.head_dim, expected.size() * sizeof(float)) == 0);
    }
    EXPECT_OK(mustafar_key_factors(&context, c.dtype, c.head_dim, 1, 1, 0, &tensor, actual.data()));
    EXPECT(std::all_of(actual.begin(), actual.begin() + c.head_dim, [](float factor) { return factor == 1.0f; }));
}

// The worked example of docs/format.md.
void worked_example(int32_t variant) {
    const Case c{variant,
                 MUSTAFAR_DTYPE_F32,
                 64,
                 MUSTAFAR_VALUE_FORMAT_INT4,
                 MUSTAFAR_PATTERN_UNSTRUCTURED,
                 MUSTAFAR_LAYOUT_FIXED,
                 4,
                 MUSTAFAR_ORDER_PLAIN,
                 false};
    float rows[2 * 64] = {};
    rows[3] = 1.75f;
    rows[10] = -0.5f;
    rows[20] = 0.25f;
    rows[40] = 0.8f;
    rows[63] = -3.5f;
    for (int i = 0; i < 4; ++i) rows[64 + i] = 0.1f;
    const Memory source(sizeof rows);
    std::memcpy(source.as(), rows, sizeof rows);
    const Tokens compressed(c, source, 2, {}, nullptr);
    EXPECT(compressed.blocks.head_stride == 384);
    std::vector<uint8_t> expected(384);
    const auto set = [&](size_t place, const std::vector<uint8_t>& bytes) {
        std::copy(bytes.begin(), bytes.end(), expected.begin() + static_cast<std::ptrdiff_t>(place));
    };
    set(0, {0x08, 0x04, 0x00, 0x00, 0x00, 0x01, 0x00, 0x80, 0x0f});
    set(256, {0x94, 0xf2, 0x77, 0x77});
    set(320, {0x00, 0x38, 0x50, 0x23});
    EXPECT(std::memcmp(compressed.memory->as(), expected.data(), expected.size()) == 0);
}

void sizes_and_refusals() {
    Case c{MUSTAFAR_CPU_VARIANT_SCALAR,
           MUSTAFAR_DTYPE_F16,
           128,
           0,
           0,
           MUSTAFAR_LAYOUT_FIXED,
           0,
           MUSTAFAR_ORDER_PLAIN,
           false};
    const auto bytes = [&](int32_t value_format, int32_t pattern, int32_t keep) {
        c.value_format = value_format;
        c.pattern = pattern;
        c.keep = keep;
        const mustafar_format format = format_of(c);
        int64_t result = 0;
        return mustafar_block_bytes(&format, &result) == MUSTAFAR_STATUS_OK ? result : -1;
    };
    constexpr int32_t int8 = MUSTAFAR_VALUE_FORMAT_INT8, int4 = MUSTAFAR_VALUE_FORMAT_INT4;
    EXPECT(bytes(int8, MUSTAFAR_PATTERN_ALL, 128) == 4160 && bytes(int4, MUSTAFAR_PATTERN_ALL, 128) == 2112);
    EXPECT(bytes(int8, MUSTAFAR_PATTERN_UNSTRUCTURED, 64) == 2624 &&
           bytes(int4, MUSTAFAR_PATTERN_UNSTRUCTURED, 64) == 1600);
    EXPECT(bytes(int8, MUSTAFAR_PATTERN_BALANCED_KEYS, 40) == 1856 &&
           bytes(int4, MUSTAFAR_PATTERN_BALANCED_VALUES, 40) == 1216);
    EXPECT(bytes(0, MUSTAFAR_PATTERN_ALL, 128) == 8192 &&
           bytes(int4, MUSTAFAR_PATTERN_UNSTRUCTURED, 39) == 512 + 624 + 64);
    EXPECT(bytes(int8, MUSTAFAR_PATTERN_ALL, 64) == -1 && bytes(3, MUSTAFAR_PATTERN_ALL, 128) == -1);
    EXPECT(bytes(int4, MUSTAFAR_PATTERN_ALL_ROTATED, 128) == 2112 &&
           bytes(int4, MUSTAFAR_PATTERN_ALL_ROTATED, 64) == -1 && bytes(0, MUSTAFAR_PATTERN_ALL_ROTATED, 128) == -1);
    c.head_dim = 96;
    EXPECT(bytes(int4, MUSTAFAR_PATTERN_ALL_ROTATED, 96) == -1);
    c.head_dim = 128;
    // In fragment order blocks of integers are as long as in plain order; native balanced ones have codes besides.
    c.order = MUSTAFAR_ORDER_KEY_FRAGMENT;
    EXPECT(bytes(int4, MUSTAFAR_PATTERN_BALANCED_KEYS, 64) == 1600 &&
           bytes(int8, MUSTAFAR_PATTERN_UNSTRUCTURED, 40) == 1856 &&
           bytes(int4, MUSTAFAR_PATTERN_BALANCED_KEYS, 40) == 1216 &&
           bytes(0, MUSTAFAR_PATTERN_BALANCED_KEYS, 40) == 3264);
    c.order = MUSTAFAR_ORDER_PLAIN;
    c.layout = MUSTAFAR_LAYOUT_OFFSETS;
    EXPECT(bytes(int8, MUSTAFAR_PATTERN_ALL, 128) == -1);

    // Factors belong to integers; a sum of values has none; conversion keeps the format.
    c = {MUSTAFAR_CPU_VARIANT_SCALAR,
         MUSTAFAR_DTYPE_F16,
         64,
         0,
         MUSTAFAR_PATTERN_ALL,
         MUSTAFAR_LAYOUT_FIXED,
         64,
         MUSTAFAR_ORDER_PLAIN,
         false};
    const mustafar_context context = context_of(c.variant);
    const Memory source(block_tokens * 64 * 2);
    fill(source.as(), block_tokens, c, false);
    const mustafar_dense tensor = dense(source.as(), block_tokens, 64);
    const Tokens native(c, source, block_tokens, {}, nullptr);
    c.value_format = int8;
    const Tokens integers(c, source, block_tokens, {}, nullptr);
    const std::vector<float> ones(64, 1.0f);
    const auto refused = [&](int32_t status, const char* word) {
        return status == MUSTAFAR_STATUS_INVALID_ARGUMENT && std::strstr(mustafar_last_error(), word) != nullptr;
    };
    EXPECT(
        refused(mustafar_compress(&context, 1, 1, block_tokens, &tensor, nullptr, nullptr, ones.data(), &native.blocks),
                "key_factors"));
    EXPECT(refused(mustafar_decompress(&context, 1, 1, 0, block_tokens, &native.blocks, ones.data(), &tensor),
                   "key_factors"));
    EXPECT(refused(mustafar_convert(&context, 1, 1, block_tokens, &native.blocks, &integers.blocks), "value_format"));
    std::vector<float> weights(block_tokens);
    mustafar_product product{};
    product.batch = product.num_heads = product.num_kv_heads = product.num_queries = 1;
    product.tokens = block_tokens;
    product.blocks = integers.blocks;
    product.dense = dense(source.as(), 1, 64);
    product.weights = dense(weights.data(), 1, block_tokens);
    product.scale = 1.0f;
    product.key_factors = ones.data();
    EXPECT(refused(mustafar_value_sum(&context, &product), "key_factors"));
    EXPECT(mustafar_key_factors(&context, MUSTAFAR_DTYPE_F16, 72, 1, 1, 1, &tensor, weights.data()) ==
           MUSTAFAR_STATUS_UNSUPPORTED);
    EXPECT(refused(mustafar_key_factors(&context, 9, 64, 1, 1, 1, &tensor, weights.data()), "dtype"));
    EXPECT(refused(mustafar_key_factors(&context, 0, 64, INT32_MAX, INT32_MAX, 0, &tensor, weights.data()), "factors"));

    // Only keys are rotated.
    mustafar_blocks rotated = integers.blocks;
    rotated.format.pattern = MUSTAFAR_PATTERN_ALL_ROTATED;
    product.blocks = rotated;
    product.key_factors = nullptr;
    EXPECT(refused(mustafar_value_sum(&context, &product), "rotated keys"));
    mustafar_attention attention{};
    attention.batch = attention.num_slots = attention.num_heads = attention.num_kv_heads = attention.num_queries = 1;
    attention.max_tokens = block_tokens;
    attention.scale = 1.0f;
    attention.keys = rotated;
    attention.values = integers.blocks;
    int64_t workspace = 0;
    EXPECT_OK(mustafar_attention_workspace(&context, &attention, &workspace));
    attention.values = rotated;
    EXPECT(refused(mustafar_attention_workspace(&context, &attention, &workspace), "rotated keys"));
    mustafar_append append{};
    append.num_kv_heads = 1;
    append.group_size = append.tail_capacity = append.max_tokens = block_tokens;
    append.keys = rotated;
    append.values = integers.blocks;
    EXPECT_OK(mustafar_append_tokens(&context, &append));
    append.values = rotated;
    EXPECT(refused(mustafar_append_tokens(&context, &append), "rotated keys"));
}

}  // namespace

int main() {
    sizes_and_refusals();
    for_all([](int32_t variant, int32_t dtype, int32_t head_dim) {
        worked_example(variant);
        rotated_beyond_numbers(variant);
        int round = 0;
        for (Case c : integer_formats(variant, dtype, head_dim)) {
            c.with_factors = ++round % 2 == 0;
            tensors(c);
        }
        factors({variant, dtype, head_dim, 0, MUSTAFAR_PATTERN_ALL, MUSTAFAR_LAYOUT_FIXED, head_dim, 0, false});
    });
    std::puts("integers are stored as they are said to be");
}
