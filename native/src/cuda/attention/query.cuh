// Dense rows, and query rows as operands.
#pragma once

#include <type_traits>

#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

// `aligned`: to 16 bytes; else to elements of 2.
template <int Words>
__device__ __forceinline__ void load_row(uint32_t (&words)[Words], const void* row, bool aligned) {
    if (aligned) {
#pragma unroll
        for (int i = 0; i < Words / 4; ++i) {
            const uint4 v = __ldg(static_cast<const uint4*>(row) + i);
            words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
        }
    } else {
        const uint16_t* const elements = static_cast<const uint16_t*>(row);
#pragma unroll
        for (int i = 0; i < Words; ++i)
            words[i] = __ldg(elements + 2 * i) | uint32_t{__ldg(elements + 2 * i + 1)} << 16;
    }
}

// Dense rows, and queries among them, of which lane 4g + t has the channels D/4 t ....
template <int HeadDim>
struct QuarterRows {
    static constexpr int head_dim = HeadDim;
    static constexpr int part_words = HeadDim / 8;  // of a dense row, for one lane
    static constexpr int steps = HeadDim / 16;      // of 16 channels along k

    // First channel of word `word` of a lane's part.
    static constexpr int part_channel(int t, int word) { return 2 * (part_words * t + word); }

    // A lane's part of a dense row: what its registers of operands A or B take.
    template <class E>
    static __device__ __forceinline__ void load_part(uint32_t (&part)[part_words], const E* row, int t, bool aligned) {
        load_row(part, row + part_channel(t, 0), aligned);
    }

    // The part of a row of which each lane has a quarter.
    static __device__ __forceinline__ void from_quarters(const uint32_t (&quarter)[HeadDim / 8],
                                                         uint32_t (&part)[part_words], int) {
#pragma unroll
        for (int i = 0; i < part_words; ++i) part[i] = quarter[i];
    }
};

// A query that is not finite makes each of its scores NaN or infinite, and so all weights NaN; but products that leave
// pruned channels out may not see the number that does it. Each number of such a row becomes NaN. The row lies in the
// four lanes of a group.
template <class T, int Words>
__device__ __forceinline__ void spread_not_finite(uint32_t (&words)[Words]) {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    Pair sum = Pair(T(0.0f), T(0.0f));
    // Infinity times zero is NaN as well.
#pragma unroll
    for (int i = 0; i < Words; ++i) sum = __hfma2(reinterpret_cast<const Pair&>(words[i]), Pair(T(0.0f), T(0.0f)), sum);
    uint32_t bits = reinterpret_cast<const uint32_t&>(sum) & 0x7fff7fffu;
    bits |= __shfl_xor_sync(full_warp, bits, 1);
    bits |= __shfl_xor_sync(full_warp, bits, 2);
    if (bits == 0) return;
#pragma unroll
    for (int i = 0; i < Words; ++i) words[i] = 0x7fff7fffu;
}

template <int Words>
__device__ __forceinline__ void clear(uint32_t (&words)[Words]) {
#pragma unroll
    for (int i = 0; i < Words; ++i) words[i] = 0;
}

// Query rows as operand B: in registers, or read from shared memory at every use, where there are several tiles of 8 rows or
// registers are short.
template <int Steps, int Tiles, bool Shared = (Tiles > 1)>
class QueryFragments {
    static_assert(Shared || Tiles == 1);

public:
    static constexpr bool shared = Shared;
    static constexpr int shared_pairs = Shared ? Steps * Tiles * 32 : 1;

    __device__ __forceinline__ uint2 operator()(int tile, int step) const {
        if constexpr (Shared)
            return load_shared_u64(address_ + (step * Tiles + tile) * 256);
        else
            return own_[step];
    }

    // `memory` is used by shared ones only; every warp writes the same values or one writes for all.
    __device__ __forceinline__ void set(int tile, int step, uint2 fragment, uint2* memory, int lane) {
        if constexpr (Shared)
            memory[(step * Tiles + tile) * 32 + lane] = fragment;
        else
            own_[step] = fragment;
    }
    __device__ __forceinline__ void attach(const uint2* memory, int lane) {
        if constexpr (Shared) address_ = shared_address(memory + lane);
    }
    // What a shared one was set to.
    __device__ __forceinline__ void take(const uint2* memory, int lane) {
        attach(memory, lane);
        if constexpr (!Shared)
#pragma unroll
            for (int i = 0; i < Steps; ++i) own_[i] = memory[i * 32 + lane];
    }

private:
    uint2 own_[Shared ? 1 : Steps];
    uint32_t address_ = 0;
};

}  // namespace mustafar::cuda
