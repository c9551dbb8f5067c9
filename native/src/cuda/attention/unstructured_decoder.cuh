// How the fragment kernels read blocks of the unstructured pattern in fragment order, whatever their values are stored as;
// docs/format.md has the order.
//
// A decoder turns one block into matrix products:
//   keys    scores[tile][2][4] = K q         operand A: 16 tokens x 16 channels, operand B: the query rows
//   values  accumulator += V^T p             operand A: 16 channels x 16 tokens, operand B: the probabilities
// The order of the channels along k is free, and so is the assignment of channels to the rows of V^T: both are chosen so
// that every lane owns whole bytes of the bitmap. With lane = 4g + t:
//   head_dim 128: K: channels 32t ... 32t + 31 of the tokens 8a + g;  V: channels 16g ... 16g + 15
//   head_dim 64:  K: channels 16t ... 16t + 15;                       V: channels 8g ... 8g + 7
//
// A run is what a block has of as many tokens as a word of the bitmap covers: 8 for keys of head_dim 128, else 16. Runs says where it
// starts, and makes operands of its values; runs with odd numbers may be stored in another way than those with even ones.
#pragma once

#include "cuda/attention/params.h"
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
struct UnstructuredDecoder : UnstructuredRows<HeadDim> {
    using UnstructuredRows<HeadDim>::steps;
    static constexpr bool has_shared = false, integers = Runs::integers, light = false;
    static constexpr int value_tiles = HeadDim / 16;
    static constexpr int bitmap = 4 * HeadDim;
    using Multiplied = typename Runs::Multiplied;
    using Units = Expand<Runs::value_bytes>;

    const ExpandConstants<Runs::value_bytes> constants;
    const int lane, g, t;
    const Runs key_runs, value_runs;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ UnstructuredDecoder(const Shared&, const AttentionParams& p, int lane_index)
        : constants(lane_index), lane(lane_index), g(lane_index >> 2), t(lane_index & 3), key_runs(p.keys),
          value_runs(p.values) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        const uint32_t base = block + bitmap;
        if constexpr (HeadDim == 128) {
            const uint32_t words = block + lane * 4;
            const auto start = [&](int token) { return base + key_runs.template start<8>(token); };
            Units units[2] = {
                {constants, load_shared_u32(words), load_shared_u32(words + 128), start(0), start(8)},
                {constants, load_shared_u32(words + 256), load_shared_u32(words + 384), start(16), start(24)}};
            units[0].start(), units[1].start();
#pragma unroll
            for (int i = 0; i < steps; ++i) {
#pragma unroll
                for (int a = 0; a < 2; ++a) {
                    uint2 low, high;
                    units[a].next(i, low, high);
                    low = key_runs.operand(low, 0), high = key_runs.operand(high, 1);
#pragma unroll
                    for (int n = 0; n < Tiles; ++n) {
                        const uint2 q = query(n, i);
                        mma_16816<Multiplied>(score[n][a], low.x, high.x, low.y, high.y, q.x, q.y);
                    }
                }
            }
        } else {
            const uint32_t row = block + g * 8 + t * 2;
            const uint32_t word0 = permute(load_shared_u16(row), load_shared_u16(row + 64), 0x5410);
            const uint32_t word1 = permute(load_shared_u16(row + 128), load_shared_u16(row + 192), 0x5410);
            Units units(constants, word0, word1, base + key_runs.template start<16>(0),
                        base + key_runs.template start<16>(16));
            units.start();
#pragma unroll
            for (int j = 0; j < steps; ++j) {
                uint2 x[2][2];
                next_steps(units, j, key_runs, 0, 1, x);
#pragma unroll
                for (int n = 0; n < Tiles; ++n) {
                    const uint2 q = query(n, j);
#pragma unroll
                    for (int a = 0; a < 2; ++a)
                        mma_16816<Multiplied>(score[n][a], x[a][0].x, x[a][0].y, x[a][1].x, x[a][1].y, q.x, q.y);
                }
            }
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        if constexpr (HeadDim == 128) {
            Units units[2] = {value_unit(block, 0), value_unit(block, 1)};
            units[0].start(), units[1].start();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int a = 0; a < 2; ++a) {
                    uint2 x[2][2];
                    next_steps(units[a], j, value_runs, a, a, x);
#pragma unroll
                    for (int n = 0; n < Tiles; ++n) {
                        value_product(accumulator[n][j], x[0], probability[n], a);
                        value_product(accumulator[n][4 + j], x[1], probability[n], a);
                    }
                }
            }
        } else {
            uint32_t word[2];
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                const uint32_t row = block + a * 128 + t * 16 + g;
                word[a] = permute(permute(load_shared_u8(row), load_shared_u8(row + 8), 0x0040),
                                  permute(load_shared_u8(row + 64), load_shared_u8(row + 72), 0x0040), 0x5410);
            }
            const uint32_t base = block + bitmap;
            Units units(constants, word[0], word[1], base + value_runs.template start<16>(0),
                        base + value_runs.template start<16>(16));
            units.start();
#pragma unroll
            for (int j = 0; j < value_tiles; ++j) {
                uint2 x[2][2];
                next_steps(units, j, value_runs, 0, 1, x);
#pragma unroll
                for (int n = 0; n < Tiles; ++n)
#pragma unroll
                    for (int a = 0; a < 2; ++a) value_product(accumulator[n][j], x[a], probability[n], a);
            }
        }
    }

private:
    // Steps 2j and 2j + 1 of both words as operands, [word][step]. second: whether a word's run has an odd number.
    static __device__ __forceinline__ void next_steps(Units& units, int j, const Runs& runs, int second0, int second1,
                                                      uint2 (&x)[2][2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            units.next(2 * j + i, x[0][i], x[1][i]);
            x[0][i] = runs.operand(x[0][i], second0), x[1][i] = runs.operand(x[1][i], second1);
        }
    }

    // Channels of two steps x the 16 tokens 16a ....
    static __device__ __forceinline__ void value_product(float (&accumulator)[4], const uint2 (&x)[2],
                                                         const uint32_t (&probability)[4], int a) {
        mma_16816<Multiplied>(accumulator, x[0].x, x[1].x, x[0].y, x[1].y, probability[2 * a], probability[2 * a + 1]);
    }

    // The 16 tokens 16a ... of a value block.
    __device__ __forceinline__ Units value_unit(uint32_t block, int a) const {
        const uint32_t row = block + a * 256 + t * 32 + g * 2;
        const uint32_t first = permute(load_shared_u16(row), load_shared_u16(row + 16), 0x5140);
        const uint32_t second = permute(load_shared_u16(row + 128), load_shared_u16(row + 144), 0x5140);
        const uint32_t word0 = permute(first, second, 0x5410), word1 = permute(first, second, 0x7632);
        const uint32_t base = block + bitmap + value_runs.template start<16>(16 * a);
        const uint32_t count = __reduce_add_sync(full_warp, static_cast<uint32_t>(__popc(word0)));
        return {constants, word0, word1, base, base + Runs::value_bytes * count};
    }
};

}  // namespace mustafar::cuda
