#include "arguments.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace mustafar_fuzz {

int element_bytes(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? 4 : 2;
}

bool keeps_all(const mustafar_format& format) {
    return format.pattern == MUSTAFAR_PATTERN_ALL || format.pattern == MUSTAFAR_PATTERN_ALL_ROTATED;
}

int64_t bitmap_words(int32_t head_dim) {
    return (int64_t{head_dim} + 31) / 32;
}

wide span(const mustafar_dense& dense, int64_t batch, int64_t heads, int64_t tokens, int64_t width) {
    if (batch <= 0 || heads <= 0 || tokens <= 0) return 0;
    return times(batch - 1, dense.batch_stride) + times(heads - 1, dense.head_stride) +
           times(tokens - 1, dense.token_stride) + width;
}

int64_t Arguments::number(int64_t low, int64_t high) {
    static constexpr int64_t edges[] = {-1,
                                        0,
                                        1,
                                        31,
                                        33,
                                        INT_MIN,
                                        INT_MAX,
                                        INT_MAX - 32,
                                        int64_t{INT_MAX} + 1,
                                        UINT_MAX,
                                        1 << 20,
                                        int64_t{1} << 40,
                                        int64_t{1} << 56,
                                        (int64_t{1} << 56) + 16,
                                        int64_t{1} << 62,
                                        INT64_MAX,
                                        INT64_MAX - 15,
                                        INT64_MIN};
    if (!mishap(24)) return input.ConsumeIntegralInRange<int64_t>(low, high);
    return input.ConsumeBool() ? input.PickValueInArray(edges) : input.ConsumeIntegral<int64_t>();
}

bool Arguments::mishap(int of) {
    return hostility >= 128 && input.ConsumeIntegralInRange<int>(0, of - 1) == 1;
}

mustafar_context Arguments::context() {
    mustafar_context context{};
    // The other device would only be a library that is not there.
    context.device = mishap(64) ? number32(MUSTAFAR_DEVICE_CPU, MUSTAFAR_DEVICE_CUDA) : MUSTAFAR_DEVICE_CPU;
    context.device_index = number32(0, 0);
    // Threads cost more than the work here, so they are rare.
    context.num_threads = input.ConsumeIntegralInRange<int>(0, 63) == 1 ? number32(0, 3) : 1;
    context.cpu_variant = number32(MUSTAFAR_CPU_VARIANT_AUTO, MUSTAFAR_CPU_VARIANT_AVX512_CORE);
    return context;
}

mustafar_format Arguments::format(int32_t layout) {
    // The large ones are rare: they take the time of several small ones.
    static constexpr int32_t head_dims[] = {64, 64, 64, 80, 80, 96, 128, 256};
    mustafar_format format{};
    format.head_dim = mishap(32) ? number32(0, 512) : input.PickValueInArray(head_dims);
    format.dtype = number32(MUSTAFAR_DTYPE_F32, MUSTAFAR_DTYPE_BF16);
    format.value_format = number32(MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_VALUE_FORMAT_INT4);
    // Values that no enumerator has yet are among these.
    const int pattern = input.ConsumeIntegralInRange<int>(0, 8);
    const bool balanced = pattern == 2 || pattern == 3, is_fixed = layout == MUSTAFAR_LAYOUT_FIXED;
    const bool all = (pattern == 6 || pattern == 7) && is_fixed, mask = pattern == 8 && is_fixed;
    format.pattern = pattern == 1 ? number32(0, 7)
                     : balanced   ? number32(MUSTAFAR_PATTERN_BALANCED_KEYS, MUSTAFAR_PATTERN_BALANCED_VALUES)
                     : all        ? (pattern == 6 ? MUSTAFAR_PATTERN_ALL : MUSTAFAR_PATTERN_ALL_ROTATED)
                     : mask       ? MUSTAFAR_PATTERN_MASK
                                  : MUSTAFAR_PATTERN_UNSTRUCTURED;
    format.layout = mishap(32) ? number32(0, 3) : layout;
    static constexpr int32_t orders[] = {MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_KEY_QUADS,
                                         MUSTAFAR_ORDER_VALUE_QUADS};
    format.order = mishap(32) ? number32(-1, 5) : input.PickValueInArray(orders);
    format.keep = layout != MUSTAFAR_LAYOUT_FIXED ? number32(0, 0)
                  : balanced                      ? static_cast<int32_t>(int64_t{number32(5, 8)} * format.head_dim / 16)
                  : all                           ? number32(format.head_dim, format.head_dim)
                                                  : number32(1, std::max(format.head_dim, 1));
    return format;
}

float* Arguments::key_factors(const mustafar_format& format, int64_t slots, int64_t heads) {
    const bool wanted = mishap(32) || (format.value_format != MUSTAFAR_VALUE_FORMAT_NATIVE && input.ConsumeBool());
    return wanted ? address(memory.make<float>(times(times(slots, heads), format.head_dim), true)) : nullptr;
}

float* Arguments::importance(const mustafar_format& format, int64_t slots, int64_t heads) {
    const bool can = format.pattern < MUSTAFAR_PATTERN_ALL && input.ConsumeIntegralInRange<int>(0, 3) == 0;
    return mishap(32) || can ? memory.make<float>(times(times(slots, heads), format.head_dim), true) : nullptr;
}

uint32_t* Arguments::bitmap(const mustafar_format& format, wide rows) {
    const bool wanted = format.pattern == MUSTAFAR_PATTERN_MASK || input.ConsumeIntegralInRange<int>(0, 7) == 0;
    return wanted && !mishap(32) ? memory.make<uint32_t>(times(rows, bitmap_words(format.head_dim))) : nullptr;
}

mustafar_dense Arguments::strides(int64_t heads, int64_t tokens, int64_t width) {
    const auto product = [](int64_t a, int64_t b) {
        int64_t result;
        return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
    };
    mustafar_dense dense{};
    // Dense, with gaps, or in the order [batch, tokens, heads, head_dim].
    const bool tokens_first = input.ConsumeBool();
    const int64_t gap = number(0, 3);
    const int64_t inner = width > INT64_MAX - 3 || gap < 0 || gap > 3 ? width : width + gap;
    dense.token_stride = mishap() ? number(0, 300) : tokens_first ? product(inner, heads) : inner;
    dense.head_stride = mishap() ? number(0, 300) : tokens_first ? inner : product(inner, tokens);
    dense.batch_stride = mishap() ? number(0, 300) : product(product(inner, heads), tokens);
    return dense;
}

mustafar_dense Arguments::dense(int64_t batch, int64_t heads, int64_t tokens, int64_t width, int element) {
    mustafar_dense dense = strides(heads, tokens, width);
    const bool small_numbers = input.ConsumeIntegralInRange<int>(0, 3) != 0;
    const wide elements = span(dense, batch, heads, tokens, width);
    dense.data = address(memory.make<char>(times(elements, element), small_numbers));
    return dense;
}

mustafar_rows Arguments::rows(int64_t count, int64_t width, int element) {
    mustafar_rows rows{};
    rows.row_stride = mishap() ? number(0, 300) : width + input.ConsumeIntegralInRange<int64_t>(0, 3);
    const bool small_numbers = input.ConsumeIntegralInRange<int>(0, 3) != 0;
    const wide elements = count > 0 ? times(count - 1, rows.row_stride) + width : 0;
    rows.data = address(memory.make<char>(times(elements, element), small_numbers));
    return rows;
}

mustafar_blocks Arguments::blocks(const mustafar_format& format, int64_t slots, int64_t heads, int64_t tokens) {
    mustafar_blocks blocks{};
    blocks.format = format;
    const int64_t used = tokens <= 0 ? 1 : (tokens - 1) / MUSTAFAR_BLOCK_TOKENS + 1;
    if (format.layout == MUSTAFAR_LAYOUT_OFFSETS) {
        blocks.page_blocks = mishap() ? number32(1, 4) : static_cast<int32_t>(std::min<int64_t>(used, INT_MAX));
        blocks.page_capacity = number(1, 1);
        offset_blocks(blocks, slots, heads);
    } else {
        blocks.page_blocks = number32(1, 3);
        const int64_t pages = blocks.page_blocks > 0 ? (used - 1) / blocks.page_blocks + 1 : 1;
        blocks.page_capacity = mishap() ? number(1, 4) : pages + (pages < 8 ? number32(0, 1) : 0);
        fixed_blocks(blocks, slots, heads);
    }
    return blocks;
}

// Pages one behind the other, or taking turns in every head.
void Arguments::fixed_blocks(mustafar_blocks& blocks, int64_t slots, int64_t heads) {
    int64_t block_bytes = 0;
    if (mustafar_block_bytes(&blocks.format, &block_bytes) != MUSTAFAR_STATUS_OK) block_bytes = 1024;
    blocks.base = mishap() ? number(0, 64) : 16 * input.ConsumeIntegralInRange<int64_t>(0, 2);
    const int32_t slab_pages = input.ConsumeIntegralInRange<int32_t>(1, 3);
    const int64_t run = std::max(blocks.page_blocks, 1) * block_bytes, gap = 16 * input.ConsumeIntegralInRange(0, 2);
    const bool page_by_page = input.ConsumeBool();
    blocks.head_stride = mishap() ? number(0, 4096) : page_by_page ? run + gap : slab_pages * (run + gap);
    blocks.page_bytes = mishap()       ? number(0, 4096)
                        : page_by_page ? std::clamp<int64_t>(heads, 1, 4) * (run + gap)
                                       : run + gap;
    const wide bytes = blocks.base + times(slab_pages - 1, blocks.page_bytes) +
                       times(std::max<int64_t>(heads, 1) - 1, blocks.head_stride) + run + MUSTAFAR_PAGE_PADDING;
    blocks.slab_bytes = mishap() || bytes > INT64_MAX ? number(0, 8192) : static_cast<int64_t>(bytes);
    const wide entries = times(slots, blocks.page_capacity);
    const int64_t pages = entries > 0 && entries <= 64 ? static_cast<int64_t>(entries) : 1;
    slabs(blocks, slab_pages, static_cast<int32_t>((pages + slab_pages - 1) / slab_pages));
    page_table(blocks, slots, int64_t{slab_pages} * blocks.slab_count);
    blocks.offsets = mishap(64) ? memory.make<uint32_t>(16) : nullptr;
}

void Arguments::offset_blocks(mustafar_blocks& blocks, int64_t slots, int64_t heads) {
    blocks.base = mishap() ? number(0, 64) : 16 * input.ConsumeIntegralInRange<int64_t>(0, 1);
    blocks.head_stride = number(0, 0);
    const wide last = wide{slots} * heads * blocks.page_blocks;
    uint32_t* const table = memory.make<uint32_t>(last + 1);
    const int64_t entries = last >= 0 && last < 256 ? static_cast<int64_t>(last) + 1 : 0;
    const int64_t least = 8 * bitmap_words(blocks.format.head_dim);  // 16-byte units of an empty block
    uint32_t unit = 0;
    for (int64_t i = 0; i < entries; ++i) {
        table[i] = mishap(24) ? input.ConsumeIntegral<uint32_t>() : unit;
        unit += static_cast<uint32_t>(least + input.ConsumeIntegralInRange<int64_t>(0, 40));
    }
    const int64_t bytes = entries > 0 ? 16 + int64_t{16} * table[entries - 1] + MUSTAFAR_PAGE_PADDING : 0;
    blocks.slab_bytes = mishap() ? number(0, 8192) : bytes;
    blocks.offsets = address(table);
    slabs(blocks, 1, 1);
    page_table(blocks, slots, 1);
}

void Arguments::slabs(mustafar_blocks& blocks, int32_t slab_pages, int32_t slab_count) {
    blocks.slab_pages = mishap() ? number32(1, 4) : slab_pages;
    blocks.slab_count = mishap(64) ? number32(0, 4) : slab_count;
    void** const slabs = memory.make<void*>(std::max(blocks.slab_count, 0));
    const int32_t made = blocks.slab_count <= 64 ? blocks.slab_count : 0;
    if (made < blocks.slab_count) memory.make<char>(Memory::most_bytes + 1);  // so many are not made
    for (int32_t i = 0; i < made; ++i) {
        slabs[i] = mishap(128) ? nullptr : memory.make<char>(blocks.slab_bytes);
        if (slabs[i] != nullptr && blocks.slab_bytes > 0 && blocks.slab_bytes <= Memory::most_bytes)
            corruptible_.emplace_back(slabs[i], static_cast<size_t>(blocks.slab_bytes));
    }
    blocks.slabs = address(slabs);
}

void Arguments::page_table(mustafar_blocks& blocks, int64_t slots, int64_t pages) {
    const wide entries = times(slots, blocks.page_capacity);
    int32_t* const table = memory.make<int32_t>(entries);
    if (entries > 0 && entries <= 64) {
        const int64_t count = static_cast<int64_t>(entries);
        for (int64_t p = 0; p < count; ++p)
            table[p] = mishap(64) ? input.ConsumeIntegral<int32_t>()
                                  : static_cast<int32_t>((count - 1 - p) % std::max<int64_t>(pages, 1));
        corruptible_.emplace_back(table, static_cast<size_t>(count) * sizeof *table);
    } else if (entries > 0 && entries <= Memory::address_space / 4) {
        memory.make<char>(Memory::most_bytes + 1);  // a table of so many pages is not filled
    }
    blocks.pages = address(table);
}

void Arguments::corrupt_blocks() {
    if (corruptible_.empty()) return;
    const auto [buffer, bytes] = corruptible_[input.ConsumeIntegralInRange<size_t>(0, corruptible_.size() - 1)];
    corrupt(buffer, bytes);
}

void Arguments::corrupt(void* buffer, size_t bytes) {
    if (bytes == 0) return;
    for (int left = input.ConsumeIntegralInRange<int>(0, 4); left > 0; --left) {
        const size_t position = input.ConsumeIntegralInRange<size_t>(0, bytes - 1);
        static_cast<unsigned char*>(buffer)[position] = input.ConsumeIntegral<uint8_t>();
    }
}

}  // namespace mustafar_fuzz
