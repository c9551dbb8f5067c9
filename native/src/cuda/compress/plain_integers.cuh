// Blocks of integers in plain order, for a thread block of 128 threads: every dtype, head_dim and layout.
#pragma once

#include "cuda/common/plain_integer.cuh"
#include "cuda/compress/layout.cuh"

namespace mustafar::cuda {

// Puts integers, each a SignedByte{bits}, rows of `stride` bytes in shared memory, in place in an image of the block's values, which have so many bytes.
// layout: bits are there and visible. Between barriers.
template <int HeadDim>
__device__ __forceinline__ void write_plain_integers(uint8_t* values, int bytes, ValueOrder order,
                                                     typename BlockLayout<HeadDim>::Memory& layout, const uint8_t* rows,
                                                     int stride) {
    auto* const words = reinterpret_cast<uint32_t*>(values);
#pragma unroll 1
    for (int i = threadIdx.x; i < bytes / 4; i += block_threads) words[i] = 0;
    __syncthreads();
    const PlainInteger integer{order.integer_bits};
    const uint32_t capacity = bytes * 8 / order.integer_bits;
    BlockLayout<HeadDim>::for_each_value(order, layout, [&](uint32_t index, int token, int channel) {
        if (index >= capacity) return;
        const uint32_t bit = index * order.integer_bits;
        atomicOr(words + bit / 32, integer.pack(rows[token * stride + channel]) << bit % 32);
    });
}

}  // namespace mustafar::cuda
