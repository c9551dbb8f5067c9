// Products with blocks of the unstructured pattern, whatever their values are stored as; decoder.cuh says which element is where.
//
// A run is what a block has of as many tokens as a word of the bitmap covers: 8 for keys of head_dim 128, else 16. Runs says where it
// starts, and makes operands of its values; runs with odd numbers may be stored in another way than those with even ones.
#pragma once

#include "cuda/attention/query.cuh"
#include "cuda/common/expand.cuh"

namespace mustafar::cuda {

template <int HeadDim>
struct UnstructuredRows : QuarterRows<HeadDim> {
    using QuarterRows<HeadDim>::part_words;

    // Channels of operand B's register pair (k = 2t, 2t + 1 | 2t + 8, 2t + 9) in a step.
    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&row)[part_words], int step, int) {
        if constexpr (HeadDim == 128) {
            const uint32_t select = step & 1 ? 0x7632 : 0x5410;
            return {permute(row[step / 2], row[4 + step / 2], select),
                    permute(row[8 + step / 2], row[12 + step / 2], select)};
        } else {
            return {permute(row[step], row[4 + step], 0x5410), permute(row[step], row[4 + step], 0x7632)};
        }
    }
};

template <class Runs, int HeadDim>
class UnstructuredProducts {
public:
    static constexpr int steps = HeadDim / 16, value_tiles = HeadDim / 16;
    static constexpr int bitmap = 4 * HeadDim;
    using Multiplied = typename Runs::Multiplied;
    using Units = Expand<Runs::value_bytes>;

    __device__ __forceinline__ explicit UnstructuredProducts(int lane_index)
        : constants_(lane_index), lane_(lane_index), g_(lane_index >> 2), t_(lane_index & 3) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const Runs& runs, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        const uint32_t base = block + bitmap;
        if constexpr (HeadDim == 128) {
            const uint32_t words = block + lane_ * 4;
            const auto start = [&](int token) { return base + runs.template start<8>(token); };
            Units units[2] = {
                {constants_, load_shared_u32(words), load_shared_u32(words + 128), start(0), start(8)},
                {constants_, load_shared_u32(words + 256), load_shared_u32(words + 384), start(16), start(24)}};
            units[0].start(), units[1].start();
#pragma unroll
            for (int i = 0; i < steps; ++i) {
#pragma unroll
                for (int a = 0; a < 2; ++a) {
                    uint2 low, high;
                    units[a].next(i, low, high);
                    low = runs.operand(low, 0), high = runs.operand(high, 1);
#pragma unroll
                    for (int n = 0; n < Tiles; ++n) {
                        const uint2 q = query(n, i);
                        mma_16816<Multiplied>(score[n][a], low.x, high.x, low.y, high.y, q.x, q.y);
                    }
                }
            }
        } else {
            const uint32_t row = block + g_ * 8 + t_ * 2;
            const uint32_t word0 = permute(load_shared_u16(row), load_shared_u16(row + 64), 0x5410);
            const uint32_t word1 = permute(load_shared_u16(row + 128), load_shared_u16(row + 192), 0x5410);
            Units units(constants_, word0, word1, base + runs.template start<16>(0),
                        base + runs.template start<16>(16));
            units.start();
#pragma unroll
            for (int j = 0; j < steps; ++j) {
                uint2 even0, even1, odd0, odd1;
                units.next(2 * j, even0, even1);
                units.next(2 * j + 1, odd0, odd1);
                even0 = runs.operand(even0, 0), odd0 = runs.operand(odd0, 0);
                even1 = runs.operand(even1, 1), odd1 = runs.operand(odd1, 1);
#pragma unroll
                for (int n = 0; n < Tiles; ++n) {
                    const uint2 q = query(n, j);
                    mma_16816<Multiplied>(score[n][0], even0.x, even0.y, odd0.x, odd0.y, q.x, q.y);
                    mma_16816<Multiplied>(score[n][1], even1.x, even1.y, odd1.x, odd1.y, q.x, q.y);
                }
            }
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const Runs& runs, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        if constexpr (HeadDim == 128) {
            Units units[2] = {value_unit(block, runs, 0), value_unit(block, runs, 1)};
            units[0].start(), units[1].start();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int a = 0; a < 2; ++a) {
                    uint2 even0, even1, odd0, odd1;
                    units[a].next(2 * j, even0, even1);
                    units[a].next(2 * j + 1, odd0, odd1);
                    even0 = runs.operand(even0, a), odd0 = runs.operand(odd0, a);
                    even1 = runs.operand(even1, a), odd1 = runs.operand(odd1, a);
#pragma unroll
                    for (int n = 0; n < Tiles; ++n) {
                        value_product(accumulator[n][j], even0, odd0, probability[n], a);
                        value_product(accumulator[n][4 + j], even1, odd1, probability[n], a);
                    }
                }
            }
        } else {
            uint32_t word[2];
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                const uint32_t row = block + a * 128 + t_ * 16 + g_;
                word[a] = permute(permute(load_shared_u8(row), load_shared_u8(row + 8), 0x0040),
                                  permute(load_shared_u8(row + 64), load_shared_u8(row + 72), 0x0040), 0x5410);
            }
            const uint32_t base = block + bitmap;
            Units units(constants_, word[0], word[1], base + runs.template start<16>(0),
                        base + runs.template start<16>(16));
            units.start();
#pragma unroll
            for (int j = 0; j < value_tiles; ++j) {
                uint2 even0, even1, odd0, odd1;
                units.next(2 * j, even0, even1);
                units.next(2 * j + 1, odd0, odd1);
                even0 = runs.operand(even0, 0), odd0 = runs.operand(odd0, 0);
                even1 = runs.operand(even1, 1), odd1 = runs.operand(odd1, 1);
#pragma unroll
                for (int n = 0; n < Tiles; ++n) {
                    value_product(accumulator[n][j], even0, odd0, probability[n], 0);
                    value_product(accumulator[n][j], even1, odd1, probability[n], 1);
                }
            }
        }
    }

private:
    // Channels of two steps x the 16 tokens 16a ....
    static __device__ __forceinline__ void value_product(float (&accumulator)[4], uint2 even, uint2 odd,
                                                         const uint32_t (&probability)[4], int a) {
        mma_16816<Multiplied>(accumulator, even.x, odd.x, even.y, odd.y, probability[2 * a], probability[2 * a + 1]);
    }

    // The 16 tokens 16a ... of a value block.
    __device__ __forceinline__ Units value_unit(uint32_t block, const Runs& runs, int a) const {
        const uint32_t row = block + a * 256 + t_ * 32 + g_ * 2;
        const uint32_t first = permute(load_shared_u16(row), load_shared_u16(row + 16), 0x5140);
        const uint32_t second = permute(load_shared_u16(row + 128), load_shared_u16(row + 144), 0x5140);
        const uint32_t word0 = permute(first, second, 0x5410), word1 = permute(first, second, 0x7632);
        const uint32_t base = block + bitmap + runs.template start<16>(16 * a);
        const uint32_t count = __reduce_add_sync(full_warp, static_cast<uint32_t>(__popc(word0)));
        return {constants_, word0, word1, base, base + Runs::value_bytes * count};
    }

    const ExpandConstants<Runs::value_bytes> constants_;
    const int lane_, g_, t_;
};

}  // namespace mustafar::cuda
