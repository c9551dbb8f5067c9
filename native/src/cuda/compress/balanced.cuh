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

// Masks of units have element m of group i at bit 4i + m. `bit` is an element's place, 4m + i.

// The elements m of the groups as bits of channels: every fourth one of keys, neighbours of values.
__device__ __forceinline__ uint32_t channel_bits(uint32_t mask, int m, bool keys) {
    const uint32_t elements = mask >> m & 0x1111u;
    return keys ? elements : elements * 0x1248u >> 12 & 15u;  // bit 4i comes to bit 12 + i, and no other one there
}

// The elements whose rank reaches the lowest kept one of their group. Ranks are below 2^31.
__device__ __forceinline__ uint32_t reaching_elements(const uint32_t (&rank)[unit_elements],
                                                      const uint32_t (&lowest)[4]) {
    uint32_t below = 0;
#pragma unroll
    for (int i = 3; i >= 0; --i)
#pragma unroll
        for (int m = 3; m >= 0; --m) below = __funnelshift_l(rank[4 * m + i] - lowest[i], below, 1);  // the sign
    return ~below & 0xffffu;
}

// The `kept` elements of largest key(bit), of up to 27 bits, and from which ranks up the elements of each group are kept.
template <class Key>
__device__ __forceinline__ uint32_t largest_by_rank(Key&& key, int kept, uint32_t (&lowest)[4]) {
    uint32_t rank[unit_elements];
#pragma unroll
    for (int bit = 0; bit < unit_elements; ++bit) rank[bit] = unit_rank(key(bit), bit);
    lowest_kept(rank, kept, lowest);
    return reaching_elements(rank, lowest);
}

// The same one by one, by keys of any size.
template <class Key>
__device__ __forceinline__ uint32_t largest_one_by_one(Key&& key, int kept) {
    uint32_t mask = 0;
#pragma unroll 1
    for (; kept > 0; --kept) {
        uint32_t largest = 0, next = 0;
#pragma unroll 1
        for (int bit = unit_elements - 1; bit >= 0; --bit) {
            const int i = bit & 3;
            const uint32_t element = 1u << (4 * i + (bit >> 2));
            if ((mask & element) != 0 || __popc(mask >> 4 * i & 15) == 2) continue;
            const uint32_t own = key(bit);
            if (own >= largest) largest = own, next = element;
        }
        mask |= next;
    }
    return mask;
}

// The `kept` elements of largest key, of 31 bits. again(bit): the same keys, from memory.
template <class Key>
__device__ __forceinline__ uint32_t largest_by_keys(const uint32_t (&key)[unit_elements], int kept, Key&& again) {
    // In the 16 octaves up to the largest, 27 bits distinguish keys, which leaves room for places in ranks of 31 bits. What
    // lies below counts as zero, which matters only if the choice goes that far down.
    constexpr uint32_t span = (1u << 27) - 2, lowest_above_zero = unit_rank(1u, unit_elements - 1);
    uint32_t largest = span;
#pragma unroll
    for (int bit = 0; bit < unit_elements; ++bit) largest = higher(largest, key[bit]);
    const uint32_t base = largest - span;
    uint32_t lowest[4] = {};
    const uint32_t mask = largest_by_rank(
        [&](int bit) { return static_cast<uint32_t>(higher(static_cast<int>(key[bit] - base), 0)); }, kept, lowest);
    if (lower(lower(lowest[0], lowest[1]), lower(lowest[2], lowest[3])) > lowest_above_zero) return mask;
    bool exact = true;
#pragma unroll 1
    for (int bit = 0; bit < unit_elements; ++bit) exact &= again(bit) - 1 >= base;  // or zero
    return exact ? mask : largest_one_by_one(again, kept);
}

// The bitmap of a block's rows, which lie `stride` elements apart. key(value, token, channel): what elements are ranked by, 31
// bits if Wide, else 16. bits: [32][words], all zero. Ends without a barrier.
template <int HeadDim, bool Wide, class T, class Bits, class Key>
__device__ __forceinline__ void select_balanced(const T* rows, int stride, bool keys, int kept, Bits& bits, Key&& key) {
#pragma unroll 1
    for (int unit = threadIdx.x; unit < block_tokens * HeadDim / unit_elements; unit += block_threads) {
        constexpr int per_token = HeadDim / unit_elements, per_quad = HeadDim / 4;
        const int first_token = keys ? unit / per_token : unit / per_quad * 4;
        const int first_channel = keys ? key_unit_channel(unit % per_token) : unit % per_quad * 4;
        const auto key_at = [&](int bit) {
            const int i = bit & 3, m = bit >> 2;
            const int token = keys ? first_token : first_token + m;
            const int channel = first_channel + (keys ? 4 * i + HeadDim / 4 * m : i);
            return key(rows[token * stride + channel], token, channel);
        };
        uint32_t own[unit_elements], mask, lowest[4] = {};
#pragma unroll
        for (int bit = 0; bit < unit_elements; ++bit) own[bit] = key_at(bit);
        if constexpr (Wide)
            mask = largest_by_keys(own, kept, key_at);
        else
            mask = largest_by_rank([&](int bit) { return own[bit]; }, kept, lowest);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const int channel = first_channel + (keys ? HeadDim / 4 * m : 0);
            atomicOr(&bits[keys ? first_token : first_token + m][channel / 32], channel_bits(mask, m, keys)
                                                                                    << channel % 32);
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
