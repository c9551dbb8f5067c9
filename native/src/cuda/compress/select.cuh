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
    uint32_t word[words];

    // Magnitude of channel c as an integer in the same order.
    __device__ __forceinline__ uint32_t key(int c) const {
        if constexpr (paired)
            return min((c & 1 ? word[c / 2] >> 16 : word[c / 2]) & 0x7fffu, nan_key);
        else
            return min(word[c] & 0x7fffffffu, nan_key);
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

__device__ __forceinline__ __half2 as_half2(uint32_t bits) {
    return *reinterpret_cast<const __half2*>(&bits);
}

// 16-bit magnitudes up to that of infinity compare as f16 numbers like the integers they are, two at a time. (bf16
// magnitudes too, as far as their bits are no f16 NaN.)
constexpr uint32_t half_limit = 0x7c00u;

template <class Part>
__device__ __forceinline__ bool compares_as_half(const Part& part) {
    bool beyond = false;
#pragma unroll
    for (int j = 0; j < Part::words; ++j)
        beyond |= (part.word[j] & 0x7fffu) > half_limit || (part.word[j] >> 16 & 0x7fffu) > half_limit;
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
            const __half2 reached = __hge2(as_half2(part.word[j] & 0x7fff7fffu), limit);
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
__device__ __forceinline__ uint64_t mask_from(const Part& part, uint32_t threshold) {
    uint64_t mask = 0;
    if constexpr (AsHalf) {
        const __half2 limit = as_half2(threshold * 0x10001u);
#pragma unroll
        for (int j = 0; j < Part::words; ++j) {
            const uint32_t reached = __hge2_mask(as_half2(part.word[j] & 0x7fff7fffu), limit);
            mask |= static_cast<uint64_t>((reached & 1u) | (reached >> 16 & 1u) << 1) << (2 * j);
        }
    } else {
#pragma unroll
        for (int c = 0; c < Part::channels; ++c) mask |= static_cast<uint64_t>(part.key(c) >= threshold) << c;
    }
    return mask;
}

template <bool AsHalf, class Part>
__device__ __forceinline__ uint64_t select_by(const Part& part, uint32_t keep, int t) {
    // The largest threshold that at least `keep` channels reach, or any that exactly `keep` reach.
    uint32_t low = 0, high = AsHalf ? half_limit + 1 : Part::nan_key + 1;
    bool found = false;
    do {
        const uint32_t middle = (low + high) >> 1;
        const uint32_t count = count_from<AsHalf>(part, middle);
        if (!found) {
            if (count >= keep)
                low = middle;
            else
                high = middle;
            found = count == keep || high - low <= 1;
        }
    } while (!__all_sync(full_warp, found));
    uint64_t mask = mask_from<AsHalf>(part, low);
    const uint32_t reached = row_sum(__popcll(mask));
    if (__any_sync(full_warp, reached != keep)) {
        // Channels at the threshold itself are taken from the lowest up.
        const uint64_t above = mask_from<AsHalf>(part, low + 1);
        uint64_t equal = mask & ~above;
        const int wanted = static_cast<int>(keep - row_sum(__popcll(above)));
        const int own = max(0, wanted - static_cast<int>(row_prefix(__popcll(equal), t)));
        while (__popcll(equal) > own) equal &= ~(uint64_t{1} << (63 - __clzll(equal)));
        if (reached != keep) mask = above | equal;
    }
    return mask;
}

// Bit c: channel c of this lane is kept. All lanes of the warp take part.
template <class T, int HeadDim>
__device__ __forceinline__ uint64_t select_channels(const RowPart<T, HeadDim>& part, uint32_t keep, int t) {
    if constexpr (sizeof(T) == 2) {
        // low + 1 must stay a number, too: a threshold at infinity takes the other way.
        if (compares_as_half(part)) return select_by<true>(part, keep, t);
    }
    return select_by<false>(part, keep, t);
}

}  // namespace mustafar::cuda
