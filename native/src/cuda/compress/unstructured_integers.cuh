// Unstructured blocks of integers in fragment order, for a thread block of 128 threads that holds the bitmap in shared memory.
#pragma once

#include "cuda/compress/integer_writer.cuh"

namespace mustafar::cuda {

// Puts bitmap and SignedBytes, rows of `stride` bytes in shared memory, into an image of the block. spare: room for as many bytes as
// the values take. Between barriers.
template <int HeadDim>
__device__ __forceinline__ void write_unstructured_integers(uint8_t* image, uint8_t* spare, IntegerByte byte, bool keys,
                                                            int keep, typename BlockLayout<HeadDim>::Memory& layout,
                                                            const uint8_t* rows, int stride) {
    constexpr int bitmap = bitmap_bytes(HeadDim);
    const int value_words = block_tokens * keep * byte.bits / 32;
    auto *const header = reinterpret_cast<uint32_t*>(image), *const values = header + bitmap / 4,
                *const others = reinterpret_cast<uint32_t*>(spare);
    for (int i = threadIdx.x; i < bitmap / 4; i += block_threads) header[i] = (&layout.bits[0][0])[i];
    for (int i = threadIdx.x; i < value_words; i += block_threads) {
        values[i] = 0;
        if (byte.bits == 4) others[i] = 0;
    }
    __syncthreads();
    const int run_values = run_tokens(HeadDim, keys) * keep;
    BlockLayout<HeadDim>::for_each_value(
        ValueOrder{true, keys, Arrangement::bitmap, 0}, layout, [&](uint32_t index, int token, int channel) {
            // Two values share a byte: those of second runs are put together apart.
            const int run = byte.bits == 8 ? 0 : token / run_tokens(HeadDim, keys), second = run & 1;
            const uint32_t place = index - run * run_values;
            if (place >= static_cast<uint32_t>(byte.bits == 8 ? block_tokens * keep : run_values)) return;
            (second ? spare : image + bitmap)[run / 2 * run_values + place] =
                static_cast<uint8_t>(byte.pack(second, rows[token * stride + channel]));
        });
    if (byte.bits != 4) return;
    __syncthreads();
    for (int i = threadIdx.x; i < value_words; i += block_threads) values[i] |= others[i];
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
