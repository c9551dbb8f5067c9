// Chooses the channels of largest magnitude of a row: exactly `keep`, of equal magnitudes the lower channel, NaNs equal to
// each other and above everything. Four neighbouring lanes hold a row, a quarter of its channels each.
#pragma once

#include <type_traits>

#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

// The channels of a lane as 32-bit words: pairs of 16-bit values, or single f32.
template <class T, int HeadDim>
struct RowPart {
    static constexpr int channels = HeadDim / 4;
    static constexpr int words = channels * sizeof(T) / 4;
    static constexpr bool paired = sizeof(T) == 2;
    static constexpr uint32_t nan_key = std::is_same_v<T, float>    ? 0x7f800001u
                                        : std::is_same_v<T, __half> ? 0x7c01u
                                                                    : 0x7f81u;
    using Mask = std::conditional_t<(channels > 32), uint64_t, uint32_t>;  // bit c: channel c
    uint32_t word[words];

    // Magnitude of channel c as an integer in the same order.
    __device__ __forceinline__ uint32_t key(int c) const {
        if constexpr (paired)
            return min((c & 1 ? word[c / 2] >> 16 : word[c / 2]) & 0x7fffu, nan_key);
        else
            return min(word[c] & 0x7fffffffu, nan_key);
    }
    static __device__ __forceinline__ uint32_t key(T value) {
        if constexpr (paired)
            return min(*reinterpret_cast<const uint16_t*>(&value) & 0x7fffu, nan_key);
        else
            return min(__float_as_uint(value) & 0x7fffffffu, nan_key);
    }
};

__device__ __forceinline__ uint32_t row_sum(uint32_t value) {
    value += __shfl_xor_sync(full_warp, value, 1);
    return value + __shfl_xor_sync(full_warp, value, 2);
}

// Sum over the lanes of the row before this one.
__device__ __forceinline__ uint32_t row_prefix(uint32_t value, int t) {
    uint32_t sum = value;
    uint32_t before = __shfl_up_sync(full_warp, sum, 1, 4);
    if (t >= 1) sum += before;
    before = __shfl_up_sync(full_warp, sum, 2, 4);
    if (t >= 2) sum += before;
    return sum - value;
}

__device__ __forceinline__ int count_bits(uint32_t mask) {
    return __popc(mask);
}
__device__ __forceinline__ int count_bits(uint64_t mask) {
    return __popcll(mask);
}

__device__ __forceinline__ uint32_t without_highest(uint32_t mask) {
    return mask & ~(0x80000000u >> __clz(static_cast<int>(mask)));
}
__device__ __forceinline__ uint64_t without_highest(uint64_t mask) {
    return mask & ~(uint64_t{1} << (63 - __clzll(static_cast<long long>(mask))));
}

// Bit i to bit 2i.
__device__ __forceinline__ uint32_t spread(uint32_t low_half) {
    low_half = (low_half | low_half << 8) & 0x00ff00ffu;
    low_half = (low_half | low_half << 4) & 0x0f0f0f0fu;
    low_half = (low_half | low_half << 2) & 0x33333333u;
    return (low_half | low_half << 1) & 0x55555555u;
}

__device__ __forceinline__ __half2 as_half2(uint32_t bits) {
    return *reinterpret_cast<const __half2*>(&bits);
}

// 16-bit magnitudes up to that of infinity compare as f16 numbers like the integers they are, two at a time. (bf16
// magnitudes too, as far as their bits are no f16 NaN.)
constexpr uint32_t half_limit = 0x7c00u;

template <class Part>
__device__ __forceinline__ bool compares_as_half(const Part& part) {
    // A NaN among the f16 numbers makes the sum of all a NaN, an infinity does not: no number is negative.
    __half2 sum = as_half2(0);
#pragma unroll
    for (int j = 0; j < Part::words; ++j) sum = __hadd2(sum, __habs2(as_half2(part.word[j])));
    const bool beyond = __hisnan(__low2half(sum)) || __hisnan(__high2half(sum));
    return !__any_sync(full_warp, beyond);
}

// How many channels of the row have a key of at least `threshold`.
template <bool AsHalf, class Part>
__device__ __forceinline__ uint32_t count_from(const Part& part, uint32_t threshold) {
    if constexpr (AsHalf) {
        const __half2 limit = as_half2(threshold * 0x10001u);
        __half2 even = as_half2(0), odd = as_half2(0);
#pragma unroll
        for (int j = 0; j < Part::words; ++j) {
            const __half2 reached = __hge2(__habs2(as_half2(part.word[j])), limit);
            if (j & 1)
                odd = __hadd2(odd, reached);
            else
                even = __hadd2(even, reached);
        }
        const __half2 sum = __hadd2(even, odd);
        return row_sum(static_cast<uint32_t>(__low2float(sum) + __high2float(sum)));
    } else {
        uint32_t count = 0;
#pragma unroll
        for (int c = 0; c < Part::channels; ++c) count += part.key(c) >= threshold;
        return row_sum(count);
    }
}

// Bit c: channel c of this lane has a key of at least `threshold`.
template <bool AsHalf, class Part>
__device__ __forceinline__ typename Part::Mask mask_from(const Part& part, uint32_t threshold) {
    typename Part::Mask mask = 0;
    if constexpr (AsHalf) {
        const __half2 limit = as_half2(threshold * 0x10001u);
#pragma unroll
        for (int first = 0; first < Part::words; first += 16) {
            uint32_t reached = 0;  // even channels in the low half, odd ones in the high half
#pragma unroll
            for (int j = first; j < first + 16 && j < Part::words; ++j)
                reached |= __hge2_mask(__habs2(as_half2(part.word[j])), limit) & 0x10001u << (j - first);
            mask |= static_cast<typename Part::Mask>(spread(reached & 0xffffu) | spread(reached >> 16) << 1)
                    << (2 * first);
        }
    } else {
#pragma unroll
        for (int c = 0; c < Part::channels; ++c)
            mask |= static_cast<typename Part::Mask>(part.key(c) >= threshold) << c;
    }
    return mask;
}

// Mean of some of the row's keys: of the order of the threshold for most data.
template <class Part>
__device__ __forceinline__ uint32_t typical_key(const Part& part) {
    uint32_t sum = 0, sampled = 0;
#pragma unroll
    for (int j = 0; j < Part::words; j += 2) {
        sum = __dp2a_lo(part.word[j] & 0x7fff7fffu, 0x0101u, sum);
        sampled += 2;
    }
    return row_sum(sum) / (4 * sampled);
}

template <bool AsHalf, class Part>
__device__ __forceinline__ typename Part::Mask select_by(const Part& part, uint32_t keep, int t) {
    // The largest threshold that at least `keep` channels reach, or any that exactly `keep` reach: from a guess outwards
    // until it is between two probes, then by halves.
    uint32_t low = 0, high = AsHalf ? half_limit + 1 : Part::nan_key + 1;
    uint32_t probe = AsHalf ? min(max(typical_key(part), 1u), half_limit) : high >> 1;
    uint32_t reach = AsHalf ? 0x200 : high;
    bool found = false;
    do {
        const uint32_t count = count_from<AsHalf>(part, probe);
        if (!found) {
            const bool enough = count >= keep;
            if (enough)
                low = probe;
            else
                high = probe;
            found = count == keep || high - low <= 1;
            const uint32_t middle = (low + high) >> 1;
            probe = enough ? min(middle, low + reach) : max(middle, high > reach ? high - reach : 0);
            if (reach < half_limit) reach <<= 2;
        }
    } while (!__all_sync(full_warp, found));
    typename Part::Mask mask = mask_from<AsHalf>(part, low);
    const uint32_t reached = row_sum(count_bits(mask));
    if (__any_sync(full_warp, reached != keep)) {
        // Channels at the threshold itself are taken from the lowest up.
        const typename Part::Mask above = mask_from<AsHalf>(part, low + 1);
        typename Part::Mask equal = mask & ~above;
        const int wanted = static_cast<int>(keep - row_sum(count_bits(above)));
        const int own = max(0, wanted - static_cast<int>(row_prefix(count_bits(equal), t)));
        while (count_bits(equal) > own) equal = without_highest(equal);
        if (reached != keep) mask = above | equal;
    }
    return mask;
}

// Bit c: channel c of this lane is kept. All lanes of the warp take part.
template <class T, int HeadDim>
__device__ __forceinline__ typename RowPart<T, HeadDim>::Mask select_channels(const RowPart<T, HeadDim>& part,
                                                                              uint32_t keep, int t) {
    if constexpr (sizeof(T) == 2) {
        if (compares_as_half(part)) return select_by<true>(part, keep, t);
    }
    return select_by<false>(part, keep, t);
}

}  // namespace mustafar::cuda
