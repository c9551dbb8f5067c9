// Expands one block into shared memory: the work of a thread block of 128 threads.
#pragma once

#include "cuda/compress/balanced_integers.cuh"
#include "cuda/compress/unstructured_integers.cuh"

namespace mustafar::cuda {

template <class T, int HeadDim>
struct BlockReader {
    using Layout = BlockLayout<HeadDim>;
    static constexpr int words = Layout::words;

    struct Memory {
        // One 32-bit word longer than the channels, as in BlockWriter.
        static constexpr int stride = HeadDim + 4 / sizeof(T);
        alignas(16) T rows[block_tokens * stride];
        typename Layout::Memory layout;
    };

    // Fills memory.rows, absent channels with +0. Begins and ends with a barrier.
    static __device__ __forceinline__ void read(Memory& memory, const Blocks& blocks, ValueOrder order, int sequence,
                                                int head, int index) {
        constexpr int bitmap = 128 * words;
        uint32_t bytes;
        const uint8_t* const block = blocks.any(sequence, head, index, bitmap, bytes);
        if constexpr (Layout::has_fragments && sizeof(T) == 4)
            if (order.integer_bits != 0) {
                const auto place = [&](int token, int channel, float value) {
                    memory.rows[token * Memory::stride + channel] = value;
                };
                __syncthreads();
                if (order.arrangement == Arrangement::bitmap) {
                    load_bits(memory, block);
                    clear_rows(memory);
                    __syncthreads();
                    read_unstructured_integers<HeadDim>(block, blocks.block_bytes, IntegerByte{order.integer_bits},
                                                        order.keys, blocks.keep, memory.layout, place);
                } else {
                    clear_rows(memory);
                    __syncthreads();
                    if (order.integer_bits == 4)
                        read_operands<4>(block, order, place);
                    else
                        read_operands<8>(block, order, place);
                }
                __syncthreads();
                return;
            }
        if constexpr (Layout::has_fragments && sizeof(T) == 2)
            if (order.arrangement == Arrangement::balanced) {
                __syncthreads();
                clear_rows(memory);
                __syncthreads();
                read_balanced<HeadDim>(block, order.keys, balanced_kept(HeadDim, blocks.keep),
                                       [&](int token, int channel, uint16_t value) {
                                           reinterpret_cast<uint16_t*>(memory.rows)[token * Memory::stride + channel] =
                                               value;
                                       });
                __syncthreads();
                return;
            }
        const T* const values = reinterpret_cast<const T*>(block + bitmap);
        const uint32_t capacity = bytes / sizeof(T);
        __syncthreads();
        load_bits(memory, block);
        clear_rows(memory);
        __syncthreads();
        // Bits past head_dim are zero in a block that is whole; in one that is not they must not lead out of the row.
        Layout::for_each_value(order, memory.layout, [&](uint32_t place, int token, int channel) {
            if (place < capacity && channel < HeadDim) memory.rows[token * Memory::stride + channel] = values[place];
        });
        __syncthreads();
    }

private:
    template <int Bits, class Place>
    static __device__ __forceinline__ void read_operands(const uint8_t* block, ValueOrder order, Place&& place) {
        if (order.arrangement == Arrangement::balanced)
            read_balanced_integers<HeadDim, Bits>(block, order.keys, place);
        else
            read_integers<HeadDim, Bits>(block, order.keys, place);
    }
    static __device__ __forceinline__ void load_bits(Memory& memory, const uint8_t* block) {
        for (int i = threadIdx.x; i < block_tokens * words; i += block_threads)
            (&memory.layout.bits[0][0])[i] = reinterpret_cast<const uint32_t*>(block)[i];
    }
    static __device__ __forceinline__ void clear_rows(Memory& memory) {
        for (int i = threadIdx.x; i < block_tokens * Memory::stride; i += block_threads) memory.rows[i] = T(0.0f);
    }
};

}  // namespace mustafar::cuda
