// Expands one block into shared memory: the work of a thread block of 128 threads.
#pragma once

#include "cuda/common/hadamard.cuh"
#include "cuda/compress/block_contents.cuh"

namespace mustafar::cuda {

// T: of native values the tensor's type, of integers float.
template <class T, int HeadDim>
struct BlockReader {
    using Layout = BlockLayout<HeadDim>;

    struct Memory {
        // One 32-bit word longer than the channels, as in BlockWriter.
        static constexpr int stride = HeadDim + 4 / sizeof(T);
        alignas(16) T rows[block_tokens * stride];
        typename Layout::Memory layout;
    };

    // Fills memory.rows, absent channels with +0, rotated keys turned back. Begins and ends with a barrier.
    static __device__ __forceinline__ void read(Memory& memory, const Blocks& blocks, ValueOrder order, int sequence,
                                                int head, int index) {
        const BlockContents<HeadDim> contents(blocks, order, sequence, head, index);
        __syncthreads();
        contents.load_bits(memory.layout);
        for (int i = threadIdx.x; i < block_tokens * Memory::stride; i += block_threads) memory.rows[i] = T(0.0f);
        __syncthreads();
        const auto place = [&](int token, int channel, T value) {
            memory.rows[token * Memory::stride + channel] = value;
        };
        bool integers = false;
        if constexpr (sizeof(T) == 4) integers = order.integer_bits != 0;
        if (!integers) {
            contents.template natives<T>(memory.layout, place);
        } else if constexpr (sizeof(T) == 4) {
            contents.integers(memory.layout, [&](int token, int channel, int value) {
                place(token, channel,
                      static_cast<float>(value) * __half2float(__ushort_as_half(contents.scale(token))));
            });
        }
        __syncthreads();
        if constexpr (sizeof(T) == 4)
            if (order.rotated) rotate_rows(memory.rows, block_tokens, Memory::stride, HeadDim);
    }
};

}  // namespace mustafar::cuda
