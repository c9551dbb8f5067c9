// One head's tokens in every format, for the native tests: what is tested, how it is compressed, and how a failure is told.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "data.h"
#include "mustafar/mustafar.h"

constexpr int block_tokens = MUSTAFAR_BLOCK_TOKENS;

struct Case {
    int32_t variant, dtype, head_dim, value_format, pattern, layout, keep, order;
    bool with_factors;
    int32_t group = 1, queries = 1;  // of attention and products
    int64_t tokens = 0;
};

[[noreturn]] inline void stop(const Case& c, const char* what, int line) {
    std::fprintf(stderr,
                 "line %d: %s (%s)\nvariant %d, dtype %d, head_dim %d, value_format %d, pattern %d, layout %d, "
                 "keep %d, order %d, factors %d, group %d, queries %d, tokens %lld\n",
                 line, what, mustafar_last_error(), c.variant, c.dtype, c.head_dim, c.value_format, c.pattern, c.layout,
                 c.keep, c.order, c.with_factors, c.group, c.queries, static_cast<long long>(c.tokens));
    std::exit(1);
}

#define EXPECT(condition) \
    if (!(condition)) stop(c, #condition, __LINE__)
#define EXPECT_OK(call) EXPECT((call) == MUSTAFAR_STATUS_OK)

inline int words(const Case& c) {
    return (c.head_dim + 31) / 32;
}

inline mustafar_format format_of(const Case& c) {
    return {c.head_dim, c.dtype, c.value_format, c.pattern, c.layout, c.order, c.keep};
}

// A contiguous tensor [1, heads, tokens, width].
inline mustafar_dense dense(const void* data, int64_t tokens, int64_t width) {
    return {const_cast<void*>(data), 0, tokens * width, width};
}

inline bool keeps_all(const Case& c) {
    return c.pattern == MUSTAFAR_PATTERN_ALL || c.pattern == MUSTAFAR_PATTERN_ALL_ROTATED;
}

// Rows of none, all and any channels; of the mask pattern no more than a block has room for.
inline std::vector<uint32_t> any_bitmap(const Case& c, int64_t tokens) {
    std::vector<uint32_t> bitmap(static_cast<size_t>(tokens * words(c)));
    const int most = c.pattern == MUSTAFAR_PATTERN_MASK ? block_tokens * c.keep : block_tokens * c.head_dim;
    int count = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        if (t % block_tokens == 0) count = 0;
        for (int i = 0; i < c.head_dim; ++i)
            if (t % 9 != 3 && (t % 9 == 5 || random_bits() % 3 == 0) && count++ < most)
                bitmap[static_cast<size_t>(t * words(c) + i / 32)] |= 1u << i % 32;
    }
    return bitmap;
}

// One head's tokens in one slab.
struct Tokens {
    Tokens(const Case& c, const Memory& source, int64_t tokens, const std::vector<uint32_t>& bitmap,
           const float* factors) {
        const mustafar_context context = context_of(c.variant);
        blocks.format = format_of(c);
        blocks.page_blocks = static_cast<int32_t>((tokens + block_tokens - 1) / block_tokens);
        blocks.slab_pages = blocks.slab_count = 1;
        blocks.page_capacity = 1;
        if (c.layout == MUSTAFAR_LAYOUT_FIXED) {
            EXPECT_OK(mustafar_block_bytes(&blocks.format, &blocks.head_stride));
            blocks.head_stride *= blocks.page_blocks;
            blocks.slab_bytes = blocks.head_stride + MUSTAFAR_PAGE_PADDING;
        } else {
            offsets.resize(static_cast<size_t>(blocks.page_blocks) + 1);
            EXPECT_OK(mustafar_offsets(&context, &blocks.format, 1, 1, tokens, bitmap.data(), offsets.data(),
                                       &blocks.slab_bytes));
            blocks.offsets = offsets.data();
        }
        memory = std::make_unique<Memory>(blocks.slab_bytes);
        address = memory->as();
        blocks.slabs = &address;
        blocks.pages = &first_page;
        const mustafar_dense tensor = dense(source.as(), tokens, c.head_dim);
        const bool needs_bitmap = c.layout == MUSTAFAR_LAYOUT_OFFSETS || c.pattern == MUSTAFAR_PATTERN_MASK;
        EXPECT_OK(mustafar_compress(&context, 1, 1, tokens, &tensor, needs_bitmap ? bitmap.data() : nullptr, nullptr,
                                    factors, &blocks));
    }
    Tokens(const Tokens&) = delete;
    Tokens& operator=(const Tokens&) = delete;

    mustafar_blocks blocks{};
    std::vector<uint32_t> offsets;
    std::unique_ptr<Memory> memory;
    void* address = nullptr;
    int32_t first_page = 0;
};

// Calls test for every variant, and all dtypes and head_dims, if not each of one with each of the other.
template <class Test>
void for_all(const Test& test) {
    for (int32_t variant = MUSTAFAR_CPU_VARIANT_SCALAR; variant < 32; ++variant) {
        if ((mustafar_cpu_variants() >> variant & 1) == 0) continue;
        for (const int32_t head_dim : {64, 80, 96, 128, 256}) test(variant, MUSTAFAR_DTYPE_F16, head_dim);
        for (const int32_t head_dim : {80, 128}) {
            test(variant, MUSTAFAR_DTYPE_F32, head_dim);
            test(variant, MUSTAFAR_DTYPE_BF16, head_dim);
        }
    }
}
