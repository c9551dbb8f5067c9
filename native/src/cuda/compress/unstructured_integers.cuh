// Unstructured blocks of integers in fragment order, for a thread block of 128 threads that holds the bitmap in shared memory.
#pragma once

#include "cuda/compress/integer_writer.cuh"

namespace mustafar::cuda {

// How an integer of a token is held before it is put in place.
template <int HeadDim>
__device__ __forceinline__ SignedByte unstructured_integer(IntegerByte byte, bool keys, uint32_t token) {
    return byte.integer(byte.bits == 4 ? token / run_tokens(HeadDim, keys) & 1 : 0);
}

// Packs a unit's integers into an image of the block's values. Those of 4 bits and second runs go to `second_values` instead: whoever
// copies the image adds them. layout: bits are there and visible. The image is so after the next barrier.
template <int HeadDim, bool Keys>
__device__ __forceinline__ void write_unstructured_integers(
    uint8_t* values, uint8_t* second_values, IntegerByte byte, int keep, typename BlockLayout<HeadDim>::Memory& layout,
    const typename BlockLayout<HeadDim>::template UnitValues<Keys, uint8_t>& own) {
    using Layout = BlockLayout<HeadDim>;
    constexpr int units_of_run = run_tokens(HeadDim, Keys) * Layout::units / block_tokens;
    const int run = byte.bits == 8 ? 0 : static_cast<int>(threadIdx.x) / 32 / units_of_run, second = run & 1;
    const typename Layout::Unit unit(Keys, layout, byte.bits == 8 ? Layout::units : units_of_run);
    const int vectors = block_tokens * keep * byte.bits / 128;
    auto *const image = reinterpret_cast<uint4*>(values), *const second_image = reinterpret_cast<uint4*>(second_values);
    if (unit.whole != static_cast<uint32_t>(block_tokens * keep)) {
#pragma unroll 1
        for (int i = threadIdx.x; i < vectors; i += block_threads) {
            image[i] = uint4{};
            if (byte.bits == 4) second_image[i] = uint4{};
        }
        __syncthreads();
    }
    own.pack(unit, (second ? second_values : values) + run / 2 * run_tokens(HeadDim, Keys) * keep);
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
            place(token, channel, byte.integer(at.second).decode(block[bitmap_bytes(HeadDim) + at.byte]));
        });
}

}  // namespace mustafar::cuda
