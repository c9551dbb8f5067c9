// Balanced blocks for a thread block of 128 threads: choosing what is kept, reading the fragment order.
#pragma once

#include "cuda/common/balanced.cuh"
#include "cuda/compress/layout.cuh"
#include "cuda/compress/select.cuh"

namespace mustafar::cuda {

// In global memory, where the lanes of a warp can read different entries at once.
__device__ constexpr BalancedCodes balanced_codes = make_balanced_codes();

// Rank of an element: magnitudes in the order of `key`, unique within a unit, never 0.
template <class Rank>
__device__ constexpr Rank unit_rank(Rank key, int bit) {
    return (key << 4 | static_cast<Rank>(15 - bit)) + 1;
}

template <class Rank>
__device__ constexpr Rank lower(Rank a, Rank b) {
    return b < a ? b : a;
}
template <class Rank>
__device__ constexpr Rank higher(Rank a, Rank b) {
    return a < b ? b : a;
}

// The lowest three, in order, of two pairs whose second is the smaller.
template <class Rank>
struct LowestThree {
    Rank lowest, next, third;

    __device__ constexpr LowestThree(Rank first_a, Rank second_a, Rank first_b, Rank second_b)
        : lowest(lower(second_a, second_b)), next(lower(higher(second_a, second_b), lower(first_a, first_b))),
          third(higher(higher(second_a, second_b), lower(first_a, first_b))) {}
};

// Elements are kept from this rank up, for each group of a unit of which `kept` (5 ... 8) are.
template <class Rank>
__device__ constexpr void lowest_kept(const Rank (&rank)[unit_elements], int kept, Rank (&lowest)[4]) {
    Rank first[4] = {}, second[4] = {};
    for (int i = 0; i < 4; ++i) {
        const Rank a = higher(rank[i], rank[4 + i]), b = lower(rank[i], rank[4 + i]);
        const Rank c = higher(rank[8 + i], rank[12 + i]), d = lower(rank[8 + i], rank[12 + i]);
        first[i] = higher(a, c);
        second[i] = higher(lower(a, c), higher(b, d));
    }
    // The highest rank of those that are left out of the two of each group.
    const LowestThree<Rank> a(first[0], second[0], first[1], second[1]), b(first[2], second[2], first[3], second[3]);
    Rank dropped = 0;
    if (kept == 7) dropped = lower(a.lowest, b.lowest);
    if (kept == 6) dropped = lower(higher(a.lowest, b.lowest), lower(a.next, b.next));
    if (kept == 5) dropped = lower(lower(a.third, b.third), lower(higher(a.next, b.lowest), higher(a.lowest, b.next)));
    for (int i = 0; i < 4; ++i) lowest[i] = higher(second[i], dropped + 1);
}

// The bitmap of a block's rows, which lie `stride` elements apart. key(value, token, channel): what elements are ranked by.
// bits: [32][words], all zero. Ends without a barrier.
template <int HeadDim, class Rank, class T, class Bits, class Key>
__device__ __forceinline__ void select_balanced(const T* rows, int stride, bool keys, int kept, Bits& bits, Key&& key) {
    for (int unit = threadIdx.x; unit < block_tokens * HeadDim / unit_elements; unit += block_threads) {
        constexpr int per_token = HeadDim / unit_elements, per_quad = HeadDim / 4;
        const int token = keys ? unit / per_token : unit / per_quad * 4;
        const int channel = keys ? key_unit_channel(unit % per_token) : unit % per_quad * 4;
        const T* const first = rows + token * stride + channel;
        const int group = keys ? 4 : 1, element = keys ? HeadDim / 4 : stride;
        Rank rank[unit_elements];
#pragma unroll
        for (int bit = 0; bit < unit_elements; ++bit)
            rank[bit] =
                unit_rank(static_cast<Rank>(key(first[(bit & 3) * group + (bit >> 2) * element],
                                                keys ? token : token + (bit >> 2),
                                                channel + (bit & 3) * group + (keys ? (bit >> 2) * element : 0))),
                          bit);
        Rank lowest[4] = {};
        lowest_kept(rank, kept, lowest);
        uint32_t mask = 0;
#pragma unroll
        for (int bit = 0; bit < unit_elements; ++bit) mask |= uint32_t{rank[bit] >= lowest[bit & 3]} << bit;
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const uint32_t four = mask >> 4 * m & 0xfu;
            const int at = channel + (keys ? HeadDim / 4 * m : 0);
            const uint32_t spread = (four & 1) | (four & 2) << 3 | (four & 4) << 6 | (four & 8) << 9;
            atomicOr(&bits[keys ? token : token + m][at / 32], (keys ? spread : four) << at % 32);
        }
    }
}

// Bytes of the two parts of a lane's code string.
template <int HeadDim>
__device__ __forceinline__ int low_code_byte(int lane) {
    using Geometry = BalancedGeometry<HeadDim>;
    return Geometry::position_bytes + lane * Geometry::low_code_bytes;
}
template <int HeadDim>
__device__ __forceinline__ int high_code_byte(int lane) {
    using Geometry = BalancedGeometry<HeadDim>;
    return Geometry::position_bytes + 32 * Geometry::low_code_bytes + lane * Geometry::high_code_bytes;
}

// Calls visit(unit number, unit) for the units of this thread.
template <int HeadDim, class Visit>
__device__ __forceinline__ void for_own_units(bool keys, Visit&& visit) {
    constexpr int own = BalancedGeometry<HeadDim>::units / 4;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int i = 0; i < own; ++i) visit(own * warp + i, BalancedUnit<HeadDim>(keys, lane, own * warp + i));
}

// Calls place(token, channel, 16 bits) for every stored value of a block.
template <int HeadDim, class Place>
__device__ __forceinline__ void read_balanced(const uint8_t* block, bool keys, int kept, Place&& place) {
    using Geometry = BalancedGeometry<HeadDim>;
    for_own_units<HeadDim>(keys, [&](int number, const BalancedUnit<HeadDim>& unit) {
        uint32_t places = 0xff;
        if (kept < most_balanced) {
            uint64_t codes = 0;
            for (int i = 0; i < Geometry::low_code_bytes; ++i)
                codes |= static_cast<uint64_t>(block[low_code_byte<HeadDim>(unit.lane) + i]) << 8 * i;
            for (int i = 0; i < Geometry::high_code_bytes; ++i)
                codes |= static_cast<uint64_t>(block[high_code_byte<HeadDim>(unit.lane) + i])
                         << 8 * (Geometry::low_code_bytes + i);
            places = balanced_codes.places[kept - fewest_balanced][codes >> 6 * number & 63];
        }
        int count = 0;
        for (int i = 0; i < 4; ++i) {
            const uint32_t word = *reinterpret_cast<const uint32_t*>(block + unit.position_byte(i));
            for (int j = 0; j < 2; ++j) {
                if ((places >> (2 * i + j) & 1) == 0) continue;
                const int m = word >> (unit.position_bit(i) + 2 * j) & 3;
                place(unit.token_of(m), unit.channel_of(i, m),
                      *reinterpret_cast<const uint16_t*>(block + unit.value_byte(kept, number, count++, i, j)));
            }
        }
    });
}

}  // namespace mustafar::cuda
