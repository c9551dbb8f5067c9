// Chooses the channels of a row with the largest keys: exactly `keep`, of equal keys the lower channel. Keys are magnitudes or
// scores as integers in the same order, NaNs equal to each other and above everything. Four neighbouring lanes hold a row, a
// quarter of its channels each.
#pragma once

#include <type_traits>

#include "cuda/common/ptx.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// The upper half of a key of 31 bits; that of a product which is NaN is 0x7fff.
struct UpperHalf {
    uint16_t bits;
};

// A lane's channels as 32-bit words: pairs of 16-bit values, or single f32.
template <class T, int HeadDim>
struct RowPart {
    static constexpr int channels = HeadDim / 4;
    static constexpr int words = channels * sizeof(T) / 4;
    static constexpr bool paired = sizeof(T) == 2;
    static constexpr uint32_t nan_key = std::is_same_v<T, float>           ? 0x7f800001u
                                        : std::is_same_v<T, __half>        ? 0x7c01u
                                        : std::is_same_v<T, __nv_bfloat16> ? 0x7f81u
                                                                           : 0x7fffu;
    // Distance between keys that are neighbours in order of size and near the threshold, for most data.
    static constexpr float key_distance = (std::is_same_v<T, __half> ? 3840.0f : 480.0f) / HeadDim;
    using Mask = std::conditional_t<(channels > 32), uint64_t, uint32_t>;  // bit c: channel c
    uint32_t word[words];

    __device__ __forceinline__ T value(int c) const { return reinterpret_cast<const T*>(word)[c]; }

    // Magnitudes of 16-bit values as keys. largest: the lane's own largest(). All lanes of the warp take part.
    __device__ __forceinline__ RowPart keys(float largest) const {
        RowPart part;
#pragma unroll
        for (int j = 0; j < words; ++j) part.word[j] = word[j] & 0x7fff7fffu;
        if (__any_sync(full_warp, isnan(largest))) {
#pragma unroll
            for (int j = 0; j < words; ++j) part.word[j] = __vminu2(part.word[j], nan_key * 0x10001u);
        }
        return part;
    }
    // The largest magnitude; NaN or infinite if a value is.
    __device__ __forceinline__ float largest() const {
        uint32_t key = 0;
        if constexpr (paired) {
#pragma unroll
            for (int j = 0; j < words; ++j) key = __vmaxu2(key, word[j] & 0x7fff7fffu);
            const auto bits = static_cast<uint16_t>(max(key & 0xffffu, key >> 16));
            return as_float(*reinterpret_cast<const T*>(&bits));
        } else {
#pragma unroll
            for (int j = 0; j < words; ++j) key = max(key, word[j] & 0x7fffffffu);
            return __uint_as_float(key);
        }
    }
    static __device__ __forceinline__ uint32_t key(T value) {
        if constexpr (paired)
            return min(*reinterpret_cast<const uint16_t*>(&value) & 0x7fffu, nan_key);
        else
            return min(__float_as_uint(value) & 0x7fffffffu, nan_key);
    }
};

// The upper halves of a lane's keys. key(c): of channel c.
template <int HeadDim, class Key>
__device__ __forceinline__ RowPart<UpperHalf, HeadDim> upper_halves(Key&& key) {
    RowPart<UpperHalf, HeadDim> part;
#pragma unroll
    for (int j = 0; j < part.words; ++j) part.word[j] = permute(key(2 * j), key(2 * j + 1), 0x7632u);
    return part;
}

__device__ __forceinline__ uint32_t row_sum(uint32_t value) {
    value += __shfl_xor_sync(full_warp, value, 1);
    return value + __shfl_xor_sync(full_warp, value, 2);
}

__device__ __forceinline__ uint32_t row_smallest(uint32_t value) {
    value = min(value, __shfl_xor_sync(full_warp, value, 1));
    return min(value, __shfl_xor_sync(full_warp, value, 2));
}

// Sum over the lanes of the row behind this one.
__device__ __forceinline__ uint32_t row_suffix(uint32_t value, int t) {
    uint32_t sum = value;
    uint32_t behind = __shfl_down_sync(full_warp, sum, 1, 4);
    if (t < 3) sum += behind;
    behind = __shfl_down_sync(full_warp, sum, 2, 4);
    if (t < 2) sum += behind;
    return sum - value;
}

__device__ __forceinline__ uint32_t count_bits(uint32_t mask) {
    return __popc(mask);
}
__device__ __forceinline__ uint32_t count_bits(uint64_t mask) {
    return __popcll(mask);
}

__device__ __forceinline__ int lowest_bit(uint32_t mask) {
    return __ffs(static_cast<int>(mask)) - 1;
}
__device__ __forceinline__ int lowest_bit(uint64_t mask) {
    return __ffsll(static_cast<long long>(mask)) - 1;
}

__device__ __forceinline__ uint32_t without_highest(uint32_t mask) {
    return mask & ~(0x80000000u >> __clz(static_cast<int>(mask)));
}
__device__ __forceinline__ uint64_t without_highest(uint64_t mask) {
    return mask & ~(uint64_t{1} << (63 - __clzll(static_cast<long long>(mask))));
}

// Keys of 16 bits, which leave their highest bit free, are compared two at a time: with this added, a key of at least
// `threshold` has that bit set.
__device__ __forceinline__ uint32_t reaching(uint32_t threshold) {
    return (0x8000u - threshold) * 0x10001u;
}
constexpr uint32_t reached_bits = 0x80008000u;

// How many channels of the row have a key of at least `threshold`. The tensor cores count the bits of all lanes: the rows
// of their matrix are the warp's 8 rows, twice.
template <class Part>
__device__ __forceinline__ uint32_t count_from(const Part& part, uint32_t threshold) {
    const uint32_t add = reaching(threshold);
    uint32_t sum[2][4] = {};  // two, so that fewer products wait for one another
#pragma unroll
    for (int first = 0; first < Part::words; first += 4) {
        uint32_t reached[4] = {0, 0, 0, 0};
#pragma unroll
        for (int j = 0; j < 4 && first + j < Part::words; ++j) reached[j] = part.word[first + j] + add;
        add_mma_bits(sum[first / 4 % 2], reached, reached_bits);
    }
    return sum[0][0] + sum[0][2] + (sum[1][0] + sum[1][2]);
}

// The row's key next to `limit`: the largest below it, or the smallest that reaches it. There must be one.
template <class Part>
__device__ __forceinline__ uint32_t nearest_key(const Part& part, uint32_t limit, bool below) {
    // Keys beyond the limit become negative, of the others the nearest the largest.
    const uint32_t add = below ? reaching(limit) : (0x7fffu + limit) * 0x10001u, sign = below ? 1 : ~0u;
    uint32_t nearest = part.word[0] * sign + add;
#pragma unroll
    for (int j = 1; j < Part::words; ++j) nearest = __vmaxs2(nearest, part.word[j] * sign + add);
    nearest = __vmaxs2(nearest, __shfl_xor_sync(full_warp, nearest, 1));
    nearest = __vmaxs2(nearest, __shfl_xor_sync(full_warp, nearest, 2));
    nearest = __vmaxs2(nearest, nearest >> 16 | nearest << 16);
    return (nearest - add) * sign & 0xffffu;
}

// Swaps two bits of the positions of a word's bits: those in `from` with those `distance` further up.
__device__ __forceinline__ uint32_t swap_bits(uint32_t word, uint32_t from, int distance) {
    const uint32_t change = (word >> distance ^ word) & from;
    return word ^ change ^ change << distance;
}

// Bit c: channel c of this lane has a key of at least `threshold`.
template <class Part>
__device__ __forceinline__ typename Part::Mask mask_from(const Part& part, uint32_t threshold) {
    const uint32_t add = reaching(threshold);
    typename Part::Mask mask = 0;
#pragma unroll
    for (int first = 0; first < Part::words; first += 16) {
        uint32_t reached = 0;  // bit k of the bytes: of words k, low and high half, and of words k + 8
#pragma unroll
        for (int k = 0; k < 8 && first + k < Part::words; ++k) {
            const uint32_t low = part.word[first + k] + add;
            const uint32_t high = first + k + 8 < Part::words ? part.word[first + k + 8] + add : 0;
            reached |= signs_of_halves(low, high) & 0x01010101u << k;
        }
        reached = swap_bits(reached, 0x00f000f0u, 4);
        reached = swap_bits(reached, 0x0c0c0c0cu, 2);
        reached = swap_bits(reached, 0x22222222u, 1);
        mask |= static_cast<typename Part::Mask>(reached) << (2 * first);
    }
    return mask;
}

// Mean of some of the row's keys. Of most data a little more than half of the channels reach it.
template <class Part>
__device__ __forceinline__ uint32_t mean_key(const Part& part) {
    uint32_t sum = 0, sampled = 0;
#pragma unroll
    for (int j = 0; j < Part::words; j += 2) {
        sum = __dp2a_lo(part.word[j], 0x0101u, sum);
        sampled += 2;
    }
    return row_sum(sum) / (4 * sampled);
}

// A key that exactly `keep` channels reach. Where equal keys leave none: the key of those, or the next.
template <class Part>
__device__ __forceinline__ uint32_t find_threshold(const Part& part, uint32_t keep) {
    // From a guess outwards until the threshold is between two probes, then by interpolation; data on which that is
    // slow is halved. The probes end when one channel too few or too many is above them. Keys are counted from the f32
    // number `zero`, above which such numbers are integers and have the order of their bits.
    constexpr uint32_t zero = 0x4b000000u, beyond = zero + Part::nan_key + 1;
    constexpr float reaching_mean = 0.55f * 4 * Part::channels, last_distance = 256 * Part::key_distance;
    uint32_t low = zero, high = beyond;
    const auto wanted = static_cast<float>(keep);
    const auto clamp = [&](float key) { return min(max(__float_as_uint(key), low + 1), high - 1); };
    // Channels with keys from `low` (`high`) on, less those wanted, plus a half: never 0.
    float distance = Part::key_distance, over = 4 * Part::channels + 0.5f - wanted, under = 0.5f - wanted;
    uint32_t probe = clamp(fmaf(reaching_mean - wanted, distance, __uint_as_float(zero + mean_key(part))));
    for (;;) {
        const float excess = static_cast<float>(static_cast<int>(count_from(part, probe - zero) - keep)) + 0.5f;
        const bool enough = excess > 0.0f;
        low = enough ? probe : low, over = enough ? excess : over;
        high = enough ? high : probe, under = enough ? under : excess;
        // What is found stays so while other rows of the warp are searched.
        if (__all_sync(full_warp, over <= 1.5f || under == -0.5f || high - low <= 1)) break;
        const bool patient = distance < last_distance;
        const bool one_sided = (low == zero || high == beyond) && patient;
        const float share = patient ? over * reciprocal(over - under) : 0.5f;
        const float start = __uint_as_float(low), way = __uint_as_float(high) - start;
        probe = clamp(one_sided ? fmaf(excess, distance, __uint_as_float(probe)) : fmaf(way, share, start));
        distance *= 2;
    }
    const bool below = under == -0.5f;
    const uint32_t nearest = nearest_key(part, (below ? high : low) - zero, below);
    if (over == 0.5f || !(below || over == 1.5f)) return low - zero;
    return below ? nearest : nearest + 1;
}

// The row's channels in `some` but the `count` highest.
template <class Mask>
__device__ __forceinline__ Mask without_highest(Mask some, int count, int t) {
    const int own =
        static_cast<int>(count_bits(some)) - max(0, count - static_cast<int>(row_suffix(count_bits(some), t)));
    while (static_cast<int>(count_bits(some)) > max(own, 0)) some = without_highest(some);
    return some;
}

// The row's channels in `some` but the `count` with the smallest keys, of equal keys the highest. key(c): of this lane's
// channel c.
template <class Mask, class Key>
__device__ __forceinline__ Mask without_smallest(Mask some, int count, int t, Key&& key) {
    while (__any_sync(full_warp, count > 0)) {
        uint32_t smallest = 0xffffffffu;
        Mask level = 0;  // the channels that have it
        for (Mask rest = some; rest != 0; rest &= rest - 1) {
            const int c = lowest_bit(rest);
            const uint32_t own = key(c);
            if (own < smallest) level = 0;
            if (own <= smallest) level |= Mask{1} << c;
            smallest = min(smallest, own);
        }
        if (smallest != row_smallest(smallest)) level = 0;
        some = (some ^ level) | without_highest(level, count, t);
        count -= static_cast<int>(row_sum(count_bits(level)));
    }
    return some;
}

// Bit c: channel c of this lane is kept. All lanes of the warp take part. reduce(some, count): the row's channels in `some`,
// whose keys are equal, but `count` that are too many to be kept.
template <class Part, class Reduce>
__device__ __forceinline__ typename Part::Mask select_channels(const Part& part, uint32_t keep, Reduce&& reduce) {
    const uint32_t threshold = find_threshold(part, keep);
    const typename Part::Mask mask = mask_from(part, threshold);
    const int surplus = static_cast<int>(row_sum(count_bits(mask)) - keep);
    if (!__any_sync(full_warp, surplus != 0)) return mask;
    const typename Part::Mask other = mask_from(part, surplus < 0 ? threshold - 1 : threshold + 1);
    const typename Part::Mask above = mask & other, level = mask ^ other;
    return above | reduce(level, static_cast<int>(row_sum(count_bits(mask | other)) - keep));
}

// By keys of 16 bits.
template <class Part>
__device__ __forceinline__ typename Part::Mask select_by_keys(const Part& part, uint32_t keep, int t) {
    return select_channels(part, keep,
                           [&](typename Part::Mask some, int count) { return without_highest(some, count, t); });
}

// By keys of 31 bits, whose upper halves mostly decide. key(c): of this lane's channel c.
template <class Part, class Key>
__device__ __forceinline__ typename Part::Mask select_by_halves(const Part& upper, uint32_t keep, int t, Key&& key) {
    return select_channels(upper, keep,
                           [&](typename Part::Mask some, int count) { return without_smallest(some, count, t, key); });
}

}  // namespace mustafar::cuda
