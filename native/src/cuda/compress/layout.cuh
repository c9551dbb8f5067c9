// The places of a block's values, for a thread block of 128 threads that holds one block's bitmap in shared memory.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/common/order.h"
#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

constexpr int block_threads = 128;

template <int HeadDim>
struct BlockLayout {
    static constexpr int words = (HeadDim + 31) / 32;  // bitmap words of a token
    static constexpr bool has_fragments = HeadDim == 64 || HeadDim == 128;

    struct Memory {
        alignas(16) uint32_t total[block_threads / 32];
        uint32_t bits[block_tokens][words];  // the end: the values of a block that is written may follow
    };

    // Calls place(index, token, channel) for every kept channel, by whichever thread; index counts values from the start
    // of the block. Returns the number of values. memory.bits must be complete and visible.
    template <class Place>
    static __device__ __forceinline__ uint32_t for_each_value(ValueOrder order, Memory& memory, Place&& place) {
        if constexpr (has_fragments)
            if (order.fragment) return fragment(order.keys, memory, place);
        return plain(memory, place);
    }

    // Units of 32 words, one for each warp, as in common/expand.cuh: bit 8m + i of lane 4g + t.
    static constexpr int units = HeadDim / 32;

    static __device__ __forceinline__ bool has_unit(int warp) { return units == block_threads / 32 || warp < units; }

    static __device__ __forceinline__ int token_of(bool keys, int unit, int g, int t, int m) {
        if constexpr (HeadDim == 128) {
            if (keys) return 8 * unit + g;
            return 16 * (unit >> 1) + 2 * t + (m & 1) + 8 * (m >> 1);
        } else {
            if (keys) return 16 * unit + g + 8 * (m >> 1);
            return 16 * unit + 2 * t + (m & 1) + 8 * (m >> 1);
        }
    }
    // Of step 0; step i is i channels further.
    static __device__ __forceinline__ int channel_of(bool keys, int unit, int g, int t, int m) {
        if constexpr (HeadDim == 128)
            return keys ? 32 * t + 8 * m : 16 * g + 8 * (unit & 1);
        else
            return keys ? 16 * t + 8 * (m & 1) : 8 * g;
    }

    // The unit of this warp, if it has one: this lane's word, and where its values start.
    struct Unit {
        uint32_t word = 0;
        uint32_t start[8];  // by step, counted from the start of the run
        uint32_t whole;     // values of the block

        // share_run: so many units, consecutive ones, make a run. A barrier.
        __device__ __forceinline__ Unit(bool keys, Memory& memory, int share_run = units) {
            const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
            if (units_are_rows(keys)) {
                word = memory.bits[token_of(keys, warp, g, t, 0)][t];
            } else if (has_unit(warp)) {
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    const auto* const row =
                        reinterpret_cast<const uint8_t*>(memory.bits[token_of(keys, warp, g, t, m)]);
                    word |= uint32_t{row[channel_of(keys, warp, g, t, m) / 8]} << (8 * m);
                }
            }
            // Counted by the steps r and 4 + r at once, in the nibbles of the highest byte.
            uint32_t two[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) two[r] = (word >> r & 0x11111111u) * 0x01010101u;
            const uint32_t nibbles = permute(permute(two[0], two[1], 0x0073), permute(two[2], two[3], 0x0073), 0x5410);
            // Bytes: the steps 0 ... 3 and 4 ... 7. Sums over the lanes up to this one, and over all.
            const uint32_t count[2] = {nibbles & 0x0f0f0f0fu, nibbles >> 4 & 0x0f0f0f0fu};
            uint32_t sum[2] = {count[0], count[1]}, all[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int lanes = 1; lanes < 32; lanes <<= 1) sum[half] = plus_lower_lane(sum[half], lanes);
                all[half] = __shfl_sync(full_warp, sum[half], 31);
                sum[half] -= count[half];
            }
            if (lane == 0) memory.total[warp] = __dp4a(all[0], 0x01010101u, __dp4a(all[1], 0x01010101u, 0u));
            __syncthreads();
            uint32_t first = 0;
            whole = 0;
            for (int unit = 0; unit < units; ++unit) {
                if (unit < warp && unit >= (warp & -share_run)) first += memory.total[unit];
                whole += memory.total[unit];
            }
            // Products pick bytes: this step's sum over the lanes below, and the steps before it in all lanes.
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t byte = 1u << 8 * (i & 3);
                start[i] = __dp4a(sum[i >> 2], byte, __dp4a(all[i >> 2], (byte - 1) & 0x01010101u, first));
                if (i == 3) first = __dp4a(all[0], 0x01010101u, first);
            }
        }

        // Whether value m of step i is kept: not 0.
        __device__ __forceinline__ uint32_t kept(int i, int m) const {
            return word & 1u << (8 * m + i);
        }
    };

    // Whether a lane of a unit has 32 consecutive channels, those that the same lane reads of a row (BlockWriter).
    static constexpr bool units_are_rows(bool keys) {
        return HeadDim == 128 && keys;
    }

    // What a lane of a unit has of a block's values of 8 or 16 bits, kept or not: element m in word m, step after step.
    template <bool Keys, class Value>
    struct UnitValues {
        static constexpr int per_word = 4 / sizeof(Value);
        uint32_t word[4][8 / per_word] = {};

        // Of units that are rows.
        __device__ __forceinline__ explicit UnitValues(const uint32_t (&row)[32 / per_word]) {
            static_assert(units_are_rows(Keys));
#pragma unroll
            for (int j = 0; j < 32 / per_word; ++j) word[j / (8 / per_word)][j % (8 / per_word)] = row[j];
        }

        // rows: `stride` values apart, visible.
        __device__ __forceinline__ UnitValues(const Value* rows, int stride) {
            const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
            if (!has_unit(warp)) return;
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                const Value* const first =
                    rows + token_of(Keys, warp, g, t, m) * stride + channel_of(Keys, warp, g, t, m);
#pragma unroll
                for (int j = 0; j < 8 / per_word; ++j) word[m][j] = reinterpret_cast<const uint32_t*>(first)[j];
            }
        }

        // Writes the kept ones to shared memory, where the values of the unit's run start.
        __device__ __forceinline__ void pack(const Unit& unit, Value* run) const {
            // Element by element: one instruction then turns a byte of the unit's bits into predicates.
            uint32_t address[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) address[i] = shared_address(run) + sizeof(Value) * unit.start[i];
#pragma unroll
            for (int m = 0; m < 4; ++m)
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    append_shared<Value>(address[i], unit.kept(i, m),
                                         word[m][i / per_word] >> 8 * sizeof(Value) * (i % per_word));
        }
    };

private:
    template <class Place>
    static __device__ __forceinline__ uint32_t plain(Memory& memory, Place&& place) {
        // Every warp looks at all rows (lane = row) for the starts, then takes its 8 rows, 4 lanes each.
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        uint32_t count = 0;
#pragma unroll
        for (int j = 0; j < words; ++j) count += __popc(memory.bits[lane][j]);
        uint32_t sum = count;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes <<= 1) sum = plus_lower_lane(sum, lanes);
        const uint32_t all = __shfl_sync(full_warp, sum, 31);
        const int token = 8 * warp + (lane >> 2);
        uint32_t index = __shfl_sync(full_warp, sum - count, token);
        for (int j = 0; j < words; ++j) {
            const uint32_t word = memory.bits[token][j];
            if ((j & 3) == (lane & 3)) {
                uint32_t own = index;
                for (uint32_t rest = word; rest != 0; rest &= rest - 1)
                    place(own++, token, 32 * j + __ffs(static_cast<int>(rest)) - 1);
            }
            index += __popc(word);
        }
        return all;
    }

    template <class Place>
    static __device__ __forceinline__ uint32_t fragment(bool keys, Memory& memory, Place&& place) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
        const Unit unit(keys, memory);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            uint32_t index = unit.start[i];
#pragma unroll
            for (int m = 0; m < 4; ++m)
                if (unit.kept(i, m)) place(index++, token_of(keys, warp, g, t, m), channel_of(keys, warp, g, t, m) + i);
        }
        return unit.whole;
    }
};

}  // namespace mustafar::cuda
