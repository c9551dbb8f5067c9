// Where compressed blocks lie: the device's view of mustafar_blocks.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/error.h"
#include "core/format.h"
#include "cuda/common/divisor.h"

namespace mustafar::cuda {

struct Blocks {
    void* const* slabs;
    const int32_t* pages;     // [slots, page_capacity] page numbers
    const uint32_t* offsets;  // OFFSETS: [slots, heads, page_blocks] + 1, in 16-byte units; FIXED: null
    int64_t page_capacity;
    int64_t base, head_stride;  // bytes
    uint32_t page_bytes;
    int32_t page_blocks;
    Divisor by_page;      // into pages of page_blocks
    Divisor by_slab;      // into slabs of slab_pages
    int32_t slab_count;   // 0: no block is ever looked at
    uint32_t last_page;   // larger page numbers are read as this one
    int32_t block_bytes;  // FIXED
    int32_t keep;         // FIXED
    int32_t pattern;
    int32_t value_bits;
    int32_t heads;

    Blocks() = default;
    Blocks(const mustafar_blocks& blocks, int32_t num_heads)
        : slabs(blocks.slabs), pages(blocks.pages), offsets(blocks.offsets), page_capacity(blocks.page_capacity),
          base(blocks.base), head_stride(blocks.head_stride), page_bytes(static_cast<uint32_t>(blocks.page_bytes)),
          page_blocks(blocks.page_blocks), by_page(static_cast<uint32_t>(std::max(1, blocks.page_blocks))),
          by_slab(static_cast<uint32_t>(std::max(1, blocks.slab_pages))), slab_count(blocks.slab_count),
          last_page(static_cast<uint32_t>(std::max(1, blocks.slab_count) * std::max(1, blocks.slab_pages) - 1)),
          block_bytes(static_cast<int32_t>(fixed_block_bytes(blocks.format))), keep(blocks.format.keep),
          pattern(blocks.format.pattern), value_bits(mustafar::value_bits(blocks.format)), heads(num_heads) {
        if (blocks.page_bytes > UINT32_MAX)
            fail(MUSTAFAR_STATUS_UNSUPPORTED, "page_bytes: expected less than 2^32 on CUDA, got %lld",
                 static_cast<long long>(blocks.page_bytes));
    }

    __device__ __forceinline__ bool rotated() const { return pattern == MUSTAFAR_PATTERN_ALL_ROTATED; }

    // Blocks of a slot that the page table has entries for, as far as they can be counted.
    int64_t table_blocks() const {
        return slab_count == 0 ? 0 : std::min(page_capacity * page_blocks, int64_t{INT32_MAX});
    }

    // Of the page that holds a block; leaves the block's number within that page.
    __device__ __forceinline__ const int32_t* page_entry(int slot, uint32_t& block) const {
        return pages + slot * page_capacity + by_page.split(block);
    }
    // The number of a page's slab; leaves the page's number within it.
    __device__ __forceinline__ uint32_t slab_of(uint32_t& page) const {
        if (page > last_page) page = last_page;
        return by_slab.split(page);
    }
    // Of a page within its slab.
    __device__ __forceinline__ uint8_t* in_slab(void* slab, uint32_t page) const {
        return static_cast<uint8_t*>(slab) + base + static_cast<uint64_t>(page) * page_bytes;
    }
    __device__ __forceinline__ uint8_t* in_page(uint8_t* page, int head, uint32_t block) const {
        return page + head * head_stride + static_cast<int64_t>(block) * block_bytes;
    }
    __device__ __forceinline__ uint8_t* page(int32_t number) const {
        uint32_t page = number;
        void* const slab = slabs[slab_of(page)];
        return in_slab(slab, page);
    }
    __device__ __forceinline__ uint8_t* fixed(int slot, int head, uint32_t block) const {
        const int32_t number = *page_entry(slot, block);
        return in_page(page(number), head, block);
    }

    // Any layout. `values` receives the bytes that the block's values may take at most.
    __device__ __forceinline__ uint8_t* any(int slot, int head, uint32_t block, int bitmap_size,
                                            uint32_t& values) const {
        if (offsets == nullptr) {
            values = block_bytes - bitmap_size;
            return fixed(slot, head, block);
        }
        const int64_t entry = (static_cast<int64_t>(slot) * heads + head) * page_blocks + block;
        const uint32_t start = offsets[entry], end = offsets[entry + 1];
        const int64_t bytes = 16 * (static_cast<int64_t>(end) - start) - bitmap_size;
        values = bytes > 0 ? static_cast<uint32_t>(bytes) : 0;
        return page(pages[slot * page_capacity]) + 16 * static_cast<int64_t>(start);
    }
};

// Whether every row starts at a multiple of 16 bytes.
inline bool is_vector_aligned(const mustafar_dense& dense, int element_bytes) {
    const int64_t elements = 16 / element_bytes;
    return reinterpret_cast<uintptr_t>(dense.data) % 16 == 0 && dense.batch_stride % elements == 0 &&
           dense.head_stride % elements == 0 && dense.token_stride % elements == 0;
}

// The device's view of mustafar_dense.
struct Dense {
    void* data;
    int64_t batch_stride, head_stride, token_stride;  // elements

    Dense() = default;
    Dense(const mustafar_dense& dense)
        : data(dense.data), batch_stride(dense.batch_stride), head_stride(dense.head_stride),
          token_stride(dense.token_stride) {}

    template <class T>
    __device__ __forceinline__ T* row(int sequence, int head, int64_t token) const {
        return static_cast<T*>(data) + sequence * batch_stride + head * head_stride + token * token_stride;
    }
};

}  // namespace mustafar::cuda
