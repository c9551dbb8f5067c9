// What a block of any order holds, value by value, for a thread block of 128 threads.
#pragma once

#include "cuda/compress/balanced_integers.cuh"
#include "cuda/compress/plain_integers.cuh"
#include "cuda/compress/unstructured_integers.cuh"

namespace mustafar::cuda {

template <int HeadDim>
struct BlockContents {
    using Layout = BlockLayout<HeadDim>;

    ValueOrder order;
    int keep;       // of the FIXED layout
    int header;     // bytes in front of the values in plain order
    uint32_t room;  // bytes of the values, at most
    const uint8_t* block;

    __device__ __forceinline__ BlockContents(const Blocks& blocks, ValueOrder value_order, int sequence, int head,
                                             int index)
        : order(value_order), keep(blocks.keep),
          header(order.arrangement == Arrangement::all ? 0 : bitmap_bytes(HeadDim)) {
        uint32_t bytes;
        block = blocks.any(sequence, head, index, header, bytes);
        const uint32_t scales = order.integer_bits != 0 ? 2 * block_tokens : 0;
        room = bytes > scales ? bytes - scales : 0;
    }

    // Of integers.
    __device__ __forceinline__ uint16_t scale(int token) const {
        const auto* const scales = reinterpret_cast<const uint16_t*>(block + header + room);
        return scales[order.fragment ? scale_place(token) : token];
    }

    // Fills layout.bits with the block's bitmap, where all channels are kept with ones; positions are left to what reads the
    // values. Between barriers.
    __device__ __forceinline__ void load_bits(typename Layout::Memory& layout) const {
        constexpr uint32_t last = HeadDim % 32 == 0 ? ~0u : (1u << HeadDim % 32) - 1;
        for (int i = threadIdx.x; i < block_tokens * Layout::words; i += block_threads) {
            uint32_t word = 0;
            if (order.arrangement == Arrangement::bitmap) word = reinterpret_cast<const uint32_t*>(block)[i];
            if (order.arrangement == Arrangement::all) word = ~0u;
            (&layout.bits[0][0])[i] = i % Layout::words == Layout::words - 1 ? word & last : word;
        }
    }

    // Calls place(token, channel, integer) for each of them. layout: bits are there and visible.
    template <class Place>
    __device__ __forceinline__ void integers(typename Layout::Memory& layout, Place&& place) const {
        if constexpr (Layout::has_fragments)
            if (order.fragment) {
                if (order.arrangement == Arrangement::bitmap)
                    read_unstructured_integers<HeadDim>(block, IntegerByte{order.integer_bits}, order.keys, keep,
                                                        layout, place);
                else if (order.integer_bits == 4)
                    operands<4>(place);
                else
                    operands<8>(place);
                return;
            }
        const PlainInteger integer{order.integer_bits};
        Layout::for_each_value(order, layout, [&](uint32_t index, int token, int channel) {
            if (index * order.integer_bits < 8 * room) place(token, channel, integer.unpack(block + header, index));
        });
    }

    // Calls place(token, channel, value) for each native value. layout: bits are there and visible.
    template <class T, class Place>
    __device__ __forceinline__ void natives(typename Layout::Memory& layout, Place&& place) const {
        if constexpr (Layout::has_fragments && sizeof(T) == 2)
            if (order.arrangement == Arrangement::balanced)
                return read_balanced<HeadDim>(block, order.keys, balanced_kept(HeadDim, keep),
                                              [&](int token, int channel, uint16_t value) {
                                                  place(token, channel, *reinterpret_cast<const T*>(&value));
                                              });
        const T* const values = reinterpret_cast<const T*>(block + header);
        const uint32_t capacity = room / sizeof(T);
        Layout::for_each_value(order, layout, [&](uint32_t index, int token, int channel) {
            if (index < capacity) place(token, channel, values[index]);
        });
    }

private:
    template <int Bits, class Place>
    __device__ __forceinline__ void operands(Place&& place) const {
        if (order.arrangement == Arrangement::balanced)
            read_balanced_integers<HeadDim, Bits>(block, order.keys, place);
        else
            read_integers<HeadDim, Bits>(block, order.keys, place);
    }
};

}  // namespace mustafar::cuda
