// Where compressed blocks lie: the device's view of mustafar_blocks.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/format.h"
#include "cuda/common/divisor.h"

namespace mustafar::cuda {

struct Blocks {
    void* const* pages;       // [batch, page_capacity]
    const uint32_t* offsets;  // OFFSETS: [batch, heads, page_blocks] + 1, in 16-byte units; FIXED: null
    int64_t page_capacity;
    int64_t base;         // bytes
    int64_t head_stride;  // bytes
    int32_t page_blocks;
    Divisor by_page;      // into pages of page_blocks
    int32_t block_bytes;  // FIXED
    int32_t keep;         // FIXED
    int32_t pattern;
    int32_t heads;

    Blocks() = default;
    Blocks(const mustafar_blocks& blocks, int32_t num_heads)
        : pages(blocks.pages), offsets(blocks.offsets), page_capacity(blocks.page_capacity), base(blocks.base),
          head_stride(blocks.head_stride), page_blocks(blocks.page_blocks),
          by_page(static_cast<uint32_t>(std::max(1, blocks.page_blocks))),
          block_bytes(static_cast<int32_t>(fixed_block_bytes(blocks.format))), keep(blocks.format.keep),
          pattern(blocks.format.pattern), heads(num_heads) {}

    // Of the page that holds a block; leaves the block's number within that page.
    __device__ __forceinline__ void* const* page_entry(int sequence, uint32_t& block) const {
        return pages + sequence * page_capacity + by_page.split(block);
    }
    __device__ __forceinline__ uint8_t* in_page(void* page, int head, uint32_t block) const {
        return static_cast<uint8_t*>(page) + base + head * head_stride + static_cast<int64_t>(block) * block_bytes;
    }
    __device__ __forceinline__ uint8_t* fixed(int sequence, int head, uint32_t block) const {
        void* const page = *page_entry(sequence, block);
        return in_page(page, head, block);
    }

    // Any layout. `values` receives the bytes that the block's values may take at most.
    __device__ __forceinline__ uint8_t* any(int sequence, int head, uint32_t block, int bitmap_size,
                                            uint32_t& values) const {
        if (offsets == nullptr) {
            values = block_bytes - bitmap_size;
            return fixed(sequence, head, block);
        }
        const int64_t entry = (static_cast<int64_t>(sequence) * heads + head) * page_blocks + block;
        const uint32_t start = offsets[entry], end = offsets[entry + 1];
        const int64_t bytes = 16 * (static_cast<int64_t>(end) - start) - bitmap_size;
        values = bytes > 0 ? static_cast<uint32_t>(bytes) : 0;
        return static_cast<uint8_t*>(pages[sequence * page_capacity]) + 16 * static_cast<int64_t>(start);
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
