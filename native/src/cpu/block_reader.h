// Finds blocks in pages and keeps every access inside the slabs, whatever the tables and the compressed data say.
#pragma once

#include "core/error.h"
#include "core/format.h"
#include "cpu/kernels.h"

namespace mustafar {

struct Block {
    const uint32_t* bitmap;
    const char* values;
    int64_t value_capacity;  // elements

    uint32_t* writable_bitmap() const { return const_cast<uint32_t*>(bitmap); }
    char* writable_values() const { return const_cast<char*>(values); }
};

// The compressed tokens of one (slot, KV head).
class BlockReader {
public:
    // Nothing of blocks is looked at before one is asked for: where there are none, any of it may be anything.
    BlockReader(const mustafar_blocks& blocks, int32_t heads, int64_t slot, int32_t head)
        : blocks_(blocks), heads_(heads), slot_(slot), head_(head),
          fixed_(blocks.format.layout == MUSTAFAR_LAYOUT_FIXED), bitmap_bytes_(bitmap_bytes(blocks.format.head_dim)),
          block_bytes_(fixed_ ? fixed_block_bytes(blocks.format) : 0) {}

    // The block's place, without a look at its content.
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
            if (bytes < bitmap_bytes_ || start + bytes + MUSTAFAR_PAGE_PADDING > blocks_.slab_bytes)
                fail(MUSTAFAR_STATUS_CORRUPT_DATA, "offsets: block %lld lies at bytes %lld ... %lld of a slab of %lld",
                     static_cast<long long>(index), static_cast<long long>(start),
                     static_cast<long long>(start + bytes), static_cast<long long>(blocks_.slab_bytes));
        }
        return Block{.bitmap = reinterpret_cast<const uint32_t*>(memory + start),
                     .values = memory + start + bitmap_bytes_,
                     .value_capacity = (bytes - bitmap_bytes_) / element_bytes(blocks_.format.dtype)};
    }

    // The first `tokens` tokens of a block, its bitmap checked against the room for values.
    TokenRun read(int64_t index, int tokens, const Kernels& kernels) const {
        const Block block = locate(index);
        const int count = kernels.count(block.bitmap, tokens);
        if (count > block.value_capacity)
            fail(MUSTAFAR_STATUS_CORRUPT_DATA, "block %lld: its bitmap marks %d values, it holds %lld",
                 static_cast<long long>(index), count, static_cast<long long>(block.value_capacity));
        return TokenRun{.data = block.values,
                        .bitmap = block.bitmap,
                        .row_bytes = 0,
                        .head_dim = blocks_.format.head_dim,
                        .tokens = tokens};
    }

private:
    const mustafar_blocks& blocks_;
    int64_t heads_, slot_, head_;
    bool fixed_;
    int64_t bitmap_bytes_, block_bytes_;
};

// Address of a dense row.
inline char* row_address(const mustafar_dense& dense, int64_t batch, int64_t head, int64_t token, int element) {
    return static_cast<char*>(dense.data) +
           (batch * dense.batch_stride + head * dense.head_stride + token * dense.token_stride) * element;
}

}  // namespace mustafar
