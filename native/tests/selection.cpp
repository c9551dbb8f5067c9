// Choosing channels apart from packing them: by magnitude times an importance of each channel, and by a caller's bitmap. Both
// in whole tensors and in a cache's appends, with every pattern, value format and variant.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "cases.h"
#include "data.h"
#include "mustafar/mustafar.h"
#include "oracle.h"

namespace {

using Bitmap = std::vector<uint32_t>;

// Magnitudes of a few octaves, and in some tokens equal ones, zeros, infinities and NaNs.
void fill(const Case& c, const Memory& memory, int64_t tokens) {
    const float specials[] = {0.0f, -0.0f, 1.0f, -1.0f, std::numeric_limits<float>::infinity()};
    for (int64_t i = 0; i < tokens * c.head_dim; ++i) {
        const uint32_t random = random_bits();
        const float number =
            std::ldexp(1.0f + static_cast<float>(random & 0xffffu) / 65536.0f, static_cast<int>(random >> 16 & 3u) - 1);
        const bool special = i / c.head_dim % 5 == 0;
        const float value = special ? specials[random % std::size(specials)] : random >> 31 ? -number : number;
        if (special && random % 61 == 7)
            std::memset(memory.as<char>() + i * element_bytes(c.dtype), 0xff,
                        static_cast<size_t>(element_bytes(c.dtype)));
        else if (value == 0.0f || std::isinf(value))
            std::memset(memory.as<char>() + i * element_bytes(c.dtype), 0, static_cast<size_t>(element_bytes(c.dtype)));
        else
            store(memory.as(), i, c.dtype, value);
    }
}

// Of any size, zeros and equal ones among them.
std::vector<float> any_importance(const Case& c) {
    std::vector<float> importance(static_cast<size_t>(c.head_dim));
    const float specials[] = {0.0f, 1.0f, 1.0f, 1e-30f, 1e30f, -2.0f, std::numeric_limits<float>::infinity()};
    for (float& channel : importance) {
        const uint32_t random = random_bits();
        channel = random % 4 == 0 ? specials[(random >> 8) % std::size(specials)]
                                  : static_cast<float>(random >> 8 & 0xffffu) / 4096.0f;
    }
    return importance;
}

std::vector<uint8_t> bytes_of(const Tokens& compressed) {
    const uint8_t* const bytes = compressed.memory->as<uint8_t>();
    return {bytes, bytes + compressed.blocks.slab_bytes};
}

// What compressing makes; its room is that of `like`.
int32_t compress(const Case& c, const Memory& source, const Bitmap* bitmap, const float* importance,
                 const Tokens& like) {
    const mustafar_context context = context_of(c.variant);
    const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
    std::memset(like.memory->as(), 0xff, static_cast<size_t>(like.blocks.slab_bytes));
    return mustafar_compress(&context, 1, 1, c.tokens, &tensor, bitmap == nullptr ? nullptr : bitmap->data(),
                             importance, nullptr, &like.blocks);
}

Bitmap prune(const Case& c, const Memory& source, const float* importance) {
    const mustafar_context context = context_of(c.variant);
    const mustafar_format format = format_of(c);
    const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
    Bitmap bitmap(static_cast<size_t>(c.tokens * words(c)));
    EXPECT_OK(mustafar_prune(&context, &format, 1, 1, c.tokens, &tensor, importance, bitmap.data()));
    return bitmap;
}

// Refused, with the name of what is wrong.
void refuse(const Case& c, int32_t status, const char* name) {
    EXPECT(status == MUSTAFAR_STATUS_INVALID_ARGUMENT);
    EXPECT(std::strncmp(mustafar_last_error(), name, std::strlen(name)) == 0);
}

void test_bitmap(const Case& c, const Memory& source, const Tokens& compressed, const Bitmap& bitmap) {
    EXPECT_OK(compress(c, source, &bitmap, nullptr, compressed));
    if (c.value_format == MUSTAFAR_VALUE_FORMAT_NATIVE) {
        const std::vector<uint8_t> expected = native_blocks(c, source, bitmap);
        EXPECT(std::memcmp(compressed.memory->as(), expected.data(), expected.size()) == 0);
    }
    // One channel more, or one less.
    const size_t last = static_cast<size_t>((c.tokens - 1) * words(c));
    Bitmap other = bitmap;
    const uint32_t present = other[last];
    other[last] = present == 0 ? 1u : present & (present - 1);
    if (c.pattern == MUSTAFAR_PATTERN_MASK)
        std::fill(other.begin(), other.begin() + block_tokens * words(c), c.head_dim < 96 ? 0xffffu : ~0u);
    if (c.pattern == MUSTAFAR_PATTERN_BALANCED_VALUES) other = Bitmap(other.size(), 0);
    refuse(c, compress(c, source, &other, nullptr, compressed), "bitmap");
}

void test(const Case& c) {
    const Memory source(c.tokens * c.head_dim * element_bytes(c.dtype)),
        other(c.tokens * c.head_dim * element_bytes(c.dtype));
    fill(c, source, c.tokens);
    fill(c, other, c.tokens);
    if (c.pattern == MUSTAFAR_PATTERN_MASK) {
        const Bitmap bitmap = any_bitmap(c, c.tokens);
        const Tokens compressed(c, source, c.tokens, bitmap, nullptr);
        test_bitmap(c, source, compressed, bitmap);
        refuse(c, compress(c, source, nullptr, nullptr, compressed), "bitmap");
        return;
    }
    const std::vector<float> importance = any_importance(c), same(static_cast<size_t>(c.head_dim), 4.0f);
    const Bitmap by_magnitude = pruned(c, source, c.tokens),
                 by_importance = pruned(c, source, c.tokens, importance.data());
    EXPECT(prune(c, source, nullptr) == by_magnitude);
    EXPECT(prune(c, source, same.data()) == by_magnitude);
    EXPECT(prune(c, source, importance.data()) == by_importance);

    const Tokens compressed(c, source, c.tokens, by_magnitude, nullptr);
    const std::vector<uint8_t> first = bytes_of(compressed);
    EXPECT_OK(compress(c, source, &by_magnitude, nullptr, compressed));
    EXPECT(bytes_of(compressed) == first);
    EXPECT_OK(compress(c, source, nullptr, importance.data(), compressed));
    const std::vector<uint8_t> weighted = bytes_of(compressed);
    EXPECT_OK(compress(c, source, &by_importance, nullptr, compressed));
    EXPECT(bytes_of(compressed) == weighted);
    // What another tensor would keep is as good as any choice of a caller's.
    test_bitmap(c, source, compressed, pruned(c, other, c.tokens));
    refuse(c, compress(c, source, &by_magnitude, importance.data(), compressed), "importance");
}

// A cache of two slots, of which slot 1 is appended to: keys by a bitmap, values by an importance. Its blocks are those that
// the same selection makes of a tensor.
void test_append(Case c, int32_t value_pattern) {
    constexpr int32_t heads = 2, before = 40, added = 60, due = 64, group = 32, window = 32, tail = 64;
    constexpr int64_t page_blocks = 1, pages = 2;
    Case of_values = c;
    of_values.pattern = value_pattern;
    const int64_t row = c.head_dim * element_bytes(c.dtype);
    const mustafar_context context = context_of(c.variant);
    c.tokens = of_values.tokens = due;

    // Token t of head h of either tensor: its first tokens are in the ring, the others are new.
    const Memory keys(heads * (before + added) * row), values(heads * (before + added) * row);
    fill(c, keys, heads * (before + added));
    fill(c, values, heads * (before + added));
    const Memory tail_keys(2 * heads * tail * row), tail_values(2 * heads * tail * row);
    for (int h = 0; h < heads; ++h)
        for (const auto& [from, to] : {std::pair{&keys, &tail_keys}, std::pair{&values, &tail_values}})
            std::memcpy(to->as<char>() + (heads + h) * tail * row, from->as<char>() + h * (before + added) * row,
                        static_cast<size_t>(before * row));

    mustafar_append append{};
    int64_t block_bytes[2];
    Bitmap bitmap(static_cast<size_t>(heads * due * words(c)));
    std::vector<float> importance;
    std::vector<std::vector<uint8_t>> expected;
    for (int h = 0; h < 2; ++h) {
        const std::vector<float> own = any_importance(c);
        importance.insert(importance.end(), own.begin(), own.end());
    }
    importance.insert(importance.begin(), importance.size(), std::numeric_limits<float>::quiet_NaN());  // slot 0
    for (int h = 0; h < heads; ++h) {
        const Memory key_rows(due * row), value_rows(due * row);
        std::memcpy(key_rows.as(), keys.as<char>() + h * (before + added) * row, static_cast<size_t>(due * row));
        std::memcpy(value_rows.as(), values.as<char>() + h * (before + added) * row, static_cast<size_t>(due * row));
        const Bitmap own = c.pattern == MUSTAFAR_PATTERN_MASK ? any_bitmap(c, due) : pruned(c, value_rows, due);
        std::copy(own.begin(), own.end(), bitmap.begin() + h * due * words(c));
        const Tokens k(c, key_rows, due, own, nullptr);
        EXPECT_OK(compress(c, key_rows, &own, nullptr, k));
        expected.push_back(bytes_of(k));
        const Tokens v(of_values, value_rows, due, own, nullptr);
        EXPECT_OK(compress(of_values, value_rows, nullptr, importance.data() + (heads + h) * c.head_dim, v));
        expected.push_back(bytes_of(v));
        block_bytes[0] = k.blocks.head_stride / 2;
        block_bytes[1] = v.blocks.head_stride / 2;
    }

    const int64_t slab_bytes = pages * heads * (block_bytes[0] + block_bytes[1]) + MUSTAFAR_PAGE_PADDING;
    const Memory slab(slab_bytes, 64);
    void* const slabs[] = {slab.as()};
    const int32_t table[] = {7, 7, 1, 0}, slot[] = {1}, lengths[] = {-1, before}, compressed[] = {-1, 0};
    const auto blocks = [&](const Case& of, int64_t base, int64_t bytes) {
        mustafar_blocks result{};
        result.format = format_of(of);
        result.page_blocks = page_blocks;
        result.slab_pages = pages;
        result.slab_count = 1;
        result.page_capacity = 2;
        result.page_bytes = heads * (block_bytes[0] + block_bytes[1]);
        result.base = base;
        result.head_stride = bytes;
        result.slab_bytes = slab_bytes;
        result.slabs = slabs;
        result.pages = table;
        return result;
    };
    append.batch = 1;
    append.num_slots = 2;
    append.num_kv_heads = heads;
    append.num_tokens = added;
    append.group_size = group;
    append.local_window = window;
    append.tail_capacity = tail;
    append.max_tokens = before + added;
    append.sequences = slot;
    append.lengths = lengths;
    append.compressed = compressed;
    append.new_keys = {keys.as<char>() + before * row, 0, (before + added) * int64_t{c.head_dim}, c.head_dim};
    append.new_values = {values.as<char>() + before * row, 0, (before + added) * int64_t{c.head_dim}, c.head_dim};
    append.keys = blocks(c, 0, block_bytes[0]);
    append.values = blocks(of_values, heads * block_bytes[0], block_bytes[1]);
    const int64_t tail_head = tail * int64_t{c.head_dim};
    append.tail_keys = {tail_keys.as(), heads * tail_head, tail_head, c.head_dim};
    append.tail_values = {tail_values.as(), heads * tail_head, tail_head, c.head_dim};
    append.key_bitmap = bitmap.data();
    append.value_importance = importance.data();
    append.bitmap_tokens = due - 1;
    refuse(c, mustafar_append_tokens(&context, &append), "bitmap_tokens");
    append.bitmap_tokens = due;
    append.key_importance = importance.data();
    refuse(c, mustafar_append_tokens(&context, &append), "key_importance");
    append.key_importance = nullptr;
    const Bitmap proper = bitmap;
    std::fill(bitmap.end() - words(c), bitmap.end(), c.pattern == MUSTAFAR_PATTERN_MASK ? 0u : 1u);
    if (c.pattern != MUSTAFAR_PATTERN_MASK) refuse(c, mustafar_append_tokens(&context, &append), "bitmap");
    bitmap = proper;
    EXPECT_OK(mustafar_append_tokens(&context, &append));
    for (int h = 0; h < heads; ++h)
        for (int which = 0; which < 2; ++which)
            for (int block = 0; block < 2; ++block) {
                const int64_t base = which * heads * block_bytes[0] + h * block_bytes[which];
                EXPECT(std::memcmp(slab.as<char>() + table[2 + block] * append.keys.page_bytes + base,
                                   expected[static_cast<size_t>(2 * h + which)].data() + block * block_bytes[which],
                                   static_cast<size_t>(block_bytes[which])) == 0);
            }
}

void test_all(int32_t variant, int32_t dtype, int32_t head_dim) {
    for (const int32_t value_format :
         {MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_VALUE_FORMAT_INT8, MUSTAFAR_VALUE_FORMAT_INT4}) {
        Case c{variant,
               dtype,
               head_dim,
               value_format,
               MUSTAFAR_PATTERN_UNSTRUCTURED,
               MUSTAFAR_LAYOUT_FIXED,
               0,
               MUSTAFAR_ORDER_PLAIN,
               false};
        for (const int64_t tokens : {33, 76}) {
            if (tokens == 33 && value_format != MUSTAFAR_VALUE_FORMAT_NATIVE) continue;
            c.tokens = tokens;
            for (const int32_t pattern : {MUSTAFAR_PATTERN_UNSTRUCTURED, MUSTAFAR_PATTERN_MASK})
                for (const int32_t keep : {1, head_dim * 5 / 16, head_dim / 2 - 1}) {
                    c.pattern = pattern;
                    c.keep = keep;
                    test(c);
                }
            for (const int32_t pattern : {MUSTAFAR_PATTERN_BALANCED_KEYS, MUSTAFAR_PATTERN_BALANCED_VALUES})
                for (const int32_t of_16 : {5, 8}) {
                    c.pattern = pattern;
                    c.keep = head_dim * of_16 / 16;
                    if (head_dim % 64 == 0) test(c);
                }
        }
        c.keep = head_dim / 2;
        for (const int32_t pattern :
             {MUSTAFAR_PATTERN_UNSTRUCTURED, MUSTAFAR_PATTERN_BALANCED_KEYS, MUSTAFAR_PATTERN_MASK}) {
            c.pattern = pattern;
            if (pattern != MUSTAFAR_PATTERN_BALANCED_KEYS || head_dim % 64 == 0)
                test_append(c, head_dim % 64 == 0 ? MUSTAFAR_PATTERN_BALANCED_VALUES : MUSTAFAR_PATTERN_UNSTRUCTURED);
        }
    }
}

}  // namespace

int main() {
    for_all(test_all);
    std::puts("channels are chosen by importance and by bitmaps as they are said to be");
}
