// Unstructured blocks of integers in fragment order, for a thread block of 128 threads that holds the bitmap in shared memory.
#pragma once

#include "cuda/compress/integer_writer.cuh"

namespace mustafar::cuda {

// Puts bitmap and integers, rows of `stride` bytes in shared memory, into an image of the block. Between barriers.
template <int HeadDim>
__device__ __forceinline__ void write_unstructured_integers(uint8_t* image, IntegerByte byte, bool keys, int keep,
                                                            typename BlockLayout<HeadDim>::Memory& layout,
                                                            const int8_t* rows, int stride) {
    auto* const words = reinterpret_cast<uint32_t*>(image);
    constexpr int bitmap_words = bitmap_bytes(HeadDim) / 4;
    const int end = bitmap_words + block_tokens * keep * byte.bits / 32;
    for (int i = threadIdx.x; i < end; i += block_threads) words[i] = i < bitmap_words ? (&layout.bits[0][0])[i] : 0;
    __syncthreads();
    const int run_values = run_tokens(HeadDim, keys) * keep;
    BlockLayout<HeadDim>::for_each_value(
        ValueOrder{true, keys, Arrangement::bitmap, 0}, layout, [&](uint32_t index, int token, int channel) {
            const auto at = byte.place(static_cast<int>(index), run_values);
            atomicOr(words + bitmap_words + at.byte / 4, byte.pack(at.second, rows[token * stride + channel])
                                                             << 8 * (at.byte % 4));
        });
}

// The reverse. place(token, channel, integer). layout: bits are there and visible.
template <int HeadDim, class Place>
__device__ __forceinline__ void read_unstructured_integers(const uint8_t* block, IntegerByte byte, bool keys, int keep,
                                                           typename BlockLayout<HeadDim>::Memory& layout,
                                                           Place&& place) {
    const int run_values = run_tokens(HeadDim, keys) * keep;
    BlockLayout<HeadDim>::for_each_value(
        ValueOrder{true, keys, Arrangement::bitmap, 0}, layout, [&](uint32_t index, int token, int channel) {
            if (index >= static_cast<uint32_t>(block_tokens * keep)) return;
            const auto at = byte.place(static_cast<int>(index), run_values);
            place(token, channel, byte.unpack(at.second, block[bitmap_bytes(HeadDim) + at.byte]));
        });
}

}  // namespace mustafar::cuda
