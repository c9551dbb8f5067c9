// Finds blocks in pages and keeps every access inside the slabs, whatever the tables and the compressed data say.
#pragma once

#include <bit>

#include "core/error.h"
#include "core/format.h"
#include "cpu/kernels.h"

namespace mustafar {

// The sections of a block.
struct Block {
    const char* begin;
    int64_t bytes;
    const uint32_t* bitmap;  // null if all channels are kept
    const char* values;
    int64_t value_capacity;  // how many values there is room for
    const uint16_t* scales;  // null for native values

    char* writable_begin() const { return const_cast<char*>(begin); }
    uint32_t* writable_bitmap() const { return const_cast<uint32_t*>(bitmap); }
    char* writable_values() const { return const_cast<char*>(values); }
    uint16_t* writable_scales() const { return const_cast<uint16_t*>(scales); }
};

// The compressed tokens of one (slot, KV head).
class BlockReader {
public:
    // Blocks are only looked at when one is requested: if there are none, their description may be anything.
    BlockReader(const mustafar_blocks& blocks, int32_t heads, int64_t slot, int32_t head)
        : blocks_(blocks), heads_(heads), slot_(slot), head_(head),
          fixed_(blocks.format.layout == MUSTAFAR_LAYOUT_FIXED), bitmap_bytes_(bitmap_bytes(blocks.format)),
          scales_bytes_(scales_bytes(blocks.format)), block_bytes_(fixed_ ? fixed_block_bytes(blocks.format) : 0),
          value_shift_(std::countr_zero(static_cast<unsigned>(value_bits(blocks.format)))) {}

    // The block's address, without looking at its content.
    Block locate(int64_t index) const {
        const uint32_t block = static_cast<uint32_t>(index), page_blocks = static_cast<uint32_t>(blocks_.page_blocks);
        const uint32_t place = fixed_ ? block / page_blocks : 0, slab_pages = static_cast<uint32_t>(blocks_.slab_pages);
        const uint32_t page = static_cast<uint32_t>(blocks_.pages[slot_ * blocks_.page_capacity + place]);
        const uint32_t slab = page / slab_pages;
        if (slab >= static_cast<uint32_t>(blocks_.slab_count))
            fail(MUSTAFAR_STATUS_CORRUPT_DATA, "pages: block %lld of slot %lld is in page %d, of %d slabs of %d pages",
                 static_cast<long long>(index), static_cast<long long>(slot_), static_cast<int32_t>(page),
                 blocks_.slab_count, blocks_.slab_pages);
        const char* const memory = static_cast<const char*>(blocks_.slabs[slab]);
        if (memory == nullptr || reinterpret_cast<uintptr_t>(memory) % 16 != 0)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "slabs: expected a 16-byte aligned address of slab %u, got %p", slab,
                 static_cast<const void*>(memory));
        int64_t start = blocks_.base + (page - slab * slab_pages) * blocks_.page_bytes, bytes;
        if (fixed_) {
            start += head_ * blocks_.head_stride + (block - place * page_blocks) * block_bytes_;
            bytes = block_bytes_;
        } else {
            const uint32_t* offset = blocks_.offsets + (slot_ * heads_ + head_) * blocks_.page_blocks + index;
            bytes = int64_t{16} * (int64_t{offset[1]} - int64_t{offset[0]});
            start += int64_t{16} * offset[0];
            if (bytes < bitmap_bytes_ + scales_bytes_ || start + bytes + MUSTAFAR_PAGE_PADDING > blocks_.slab_bytes)
                fail(MUSTAFAR_STATUS_CORRUPT_DATA, "offsets: block %lld is at bytes %lld ... %lld of a slab of %lld",
                     static_cast<long long>(index), static_cast<long long>(start),
                     static_cast<long long>(start + bytes), static_cast<long long>(blocks_.slab_bytes));
        }
        const char* const begin = memory + start;
        const char* const scales = begin + bytes - scales_bytes_;
        return Block{.begin = begin,
                     .bytes = bytes,
                     .bitmap = bitmap_bytes_ > 0 ? reinterpret_cast<const uint32_t*>(begin) : nullptr,
                     .values = begin + bitmap_bytes_,
                     .value_capacity = (bytes - bitmap_bytes_ - scales_bytes_) * 8 >> value_shift_,
                     .scales = scales_bytes_ > 0 ? reinterpret_cast<const uint16_t*>(scales) : nullptr};
    }

    // A block whose first `tokens` tokens will be read: its bitmap is checked against the room for values.
    Block read(int64_t index, int tokens, const Kernels& kernels) const {
        const Block block = locate(index);
        const int count = block.bitmap == nullptr ? 0 : kernels.count(block.bitmap, tokens);
        if (count > block.value_capacity)
            fail(MUSTAFAR_STATUS_CORRUPT_DATA, "block %lld: its bitmap marks %d values, but it holds %lld",
                 static_cast<long long>(index), count, static_cast<long long>(block.value_capacity));
        return block;
    }

private:
    const mustafar_blocks& blocks_;
    int64_t heads_, slot_, head_;
    bool fixed_;
    int64_t bitmap_bytes_, scales_bytes_, block_bytes_;
    int value_shift_;  // values have 1 << value_shift_ bits
};

// Blocks that will be read later, or none.
struct UpcomingBlocks {
    const BlockReader* reader = nullptr;
    int64_t first = 0, end = 0;
};

}  // namespace mustafar
