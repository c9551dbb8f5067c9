// How the fragment kernels read blocks of the unstructured pattern in fragment order; docs/format.md has the order.
//
// A decoder turns one block into matrix products:
//   keys    scores[tile][2][4] = K q         operand A: 16 tokens x 16 channels, operand B: the query rows
//   values  accumulator += V^T p             operand A: 16 channels x 16 tokens, operand B: the probabilities
// The order of the channels along k is free, and so is the assignment of channels to the rows of V^T: both are chosen so
// that every lane owns whole bytes of the bitmap. With lane = 4g + t:
//   head_dim 128: K: channels 32t ... 32t + 31 of the tokens 8a + g;  V: channels 16g ... 16g + 15
//   head_dim 64:  K: channels 16t ... 16t + 15;                       V: channels 8g ... 8g + 7
#pragma once

#include "cuda/attention/params.h"
#include "cuda/attention/query.cuh"
#include "cuda/common/expand.cuh"

namespace mustafar::cuda {

template <class T, int HeadDim>
struct Decoder;

template <class T>
struct Decoder<T, 128> {
    static constexpr int head_dim = 128;
    static constexpr bool has_shared = false, integers = false;
    static constexpr int part_words = 16;  // of a dense row, for one lane
    static constexpr int steps = 8;        // of 16 channels along k
    static constexpr int bitmap = 512;
    static constexpr int value_tiles = 8;

    const ExpandConstants constants;
    const int lane, g, t;
    const uint32_t key_half, value_half;  // bytes of the values of 8 tokens

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ Decoder(const Shared&, const AttentionParams& p, int lane_index)
        : constants(lane_index), lane(lane_index), g(lane_index >> 2), t(lane_index & 3), key_half(16 * p.keys.keep),
          value_half(16 * p.values.keep) {}

    // A lane's part of a dense row: what its registers of operands A or B take.
    template <class E>
    static __device__ __forceinline__ void load_part(uint32_t (&part)[part_words], const E* row, int t, bool aligned) {
        load_row(part, row + 2 * part_words * t, aligned);
    }

    // Channels of operand B's register pair (k = 2t, 2t + 1 | 2t + 8, 2t + 9) in a step.
    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&row)[part_words], int step, int) {
        const uint32_t select = step & 1 ? 0x7632 : 0x5410;
        return {permute(row[step / 2], row[4 + step / 2], select),
                permute(row[8 + step / 2], row[12 + step / 2], select)};
    }

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        const uint32_t base = block + bitmap, words = block + lane * 4;
        Expand expand[2] = {{constants, load_shared_u32(words), load_shared_u32(words + 128), base, base + key_half},
                            {constants, load_shared_u32(words + 256), load_shared_u32(words + 384), base + 2 * key_half,
                             base + 3 * key_half}};
        expand[0].start(), expand[1].start();
#pragma unroll
        for (int i = 0; i < steps; ++i) {
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                uint2 low, high;
                expand[a].next(i, low, high);
#pragma unroll
                for (int n = 0; n < Tiles; ++n) {
                    const uint2 q = query(n, i);
                    mma_16816<T>(score[n][a], low.x, high.x, low.y, high.y, q.x, q.y);
                }
            }
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        Expand expand[2] = {unit(block, 0), unit(block, 1)};
        expand[0].start(), expand[1].start();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                uint2 even0, even1, odd0, odd1;
                expand[a].next(2 * j, even0, even1);
                expand[a].next(2 * j + 1, odd0, odd1);
#pragma unroll
                for (int n = 0; n < Tiles; ++n) {
                    mma_16816<T>(accumulator[n][j], even0.x, odd0.x, even0.y, odd0.y, probability[n][2 * a],
                                 probability[n][2 * a + 1]);
                    mma_16816<T>(accumulator[n][4 + j], even1.x, odd1.x, even1.y, odd1.y, probability[n][2 * a],
                                 probability[n][2 * a + 1]);
                }
            }
        }
    }

private:
    // The 16 tokens 16a ... of a value block.
    __device__ __forceinline__ Expand unit(uint32_t block, int a) const {
        const uint32_t row = block + a * 256 + t * 32 + g * 2;
        const uint32_t first = permute(load_shared_u16(row), load_shared_u16(row + 16), 0x5140);
        const uint32_t second = permute(load_shared_u16(row + 128), load_shared_u16(row + 144), 0x5140);
        const uint32_t word0 = permute(first, second, 0x5410), word1 = permute(first, second, 0x7632);
        const uint32_t base = block + bitmap + 2 * a * value_half;
        return {constants, word0, word1, base,
                base + 2 * __reduce_add_sync(full_warp, static_cast<uint32_t>(__popc(word0)))};
    }
};

template <class T>
struct Decoder<T, 64> {
    static constexpr int head_dim = 64;
    static constexpr bool has_shared = false, integers = false;
    static constexpr int part_words = 8;  // of a dense row, for one lane
    static constexpr int steps = 4;
    static constexpr int bitmap = 256;
    static constexpr int value_tiles = 4;

    const ExpandConstants constants;
    const int lane, g, t;
    const uint32_t key_half, value_half;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ Decoder(const Shared&, const AttentionParams& p, int lane_index)
        : constants(lane_index), lane(lane_index), g(lane_index >> 2), t(lane_index & 3), key_half(16 * p.keys.keep),
          value_half(16 * p.values.keep) {}

    template <class E>
    static __device__ __forceinline__ void load_part(uint32_t (&part)[part_words], const E* row, int t, bool aligned) {
        load_row(part, row + 2 * part_words * t, aligned);
    }

    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&row)[part_words], int step, int) {
        return {permute(row[step], row[4 + step], 0x5410), permute(row[step], row[4 + step], 0x7632)};
    }

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        const uint32_t row = block + g * 8 + t * 2;
        const uint32_t word0 = permute(load_shared_u16(row), load_shared_u16(row + 64), 0x5410);
        const uint32_t word1 = permute(load_shared_u16(row + 128), load_shared_u16(row + 192), 0x5410);
        const uint32_t base = block + bitmap;
        Expand expand(constants, word0, word1, base, base + 2 * key_half);
        expand.start();
#pragma unroll
        for (int j = 0; j < steps; ++j) {
            uint2 even0, even1, odd0, odd1;
            expand.next(2 * j, even0, even1);
            expand.next(2 * j + 1, odd0, odd1);
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                const uint2 q = query(n, j);
                mma_16816<T>(score[n][0], even0.x, even0.y, odd0.x, odd0.y, q.x, q.y);
                mma_16816<T>(score[n][1], even1.x, even1.y, odd1.x, odd1.y, q.x, q.y);
            }
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        uint32_t word[2];
#pragma unroll
        for (int a = 0; a < 2; ++a) {
            const uint32_t row = block + a * 128 + t * 16 + g;
            word[a] = permute(permute(load_shared_u8(row), load_shared_u8(row + 8), 0x0040),
                              permute(load_shared_u8(row + 64), load_shared_u8(row + 72), 0x0040), 0x5410);
        }
        const uint32_t base = block + bitmap;
        Expand expand(constants, word[0], word[1], base, base + 2 * value_half);
        expand.start();
#pragma unroll
        for (int j = 0; j < value_tiles; ++j) {
            uint2 even0, even1, odd0, odd1;
            expand.next(2 * j, even0, even1);
            expand.next(2 * j + 1, odd0, odd1);
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                mma_16816<T>(accumulator[n][j], even0.x, odd0.x, even0.y, odd0.y, probability[n][0], probability[n][1]);
                mma_16816<T>(accumulator[n][j], even1.x, odd1.x, even1.y, odd1.y, probability[n][2], probability[n][3]);
            }
        }
    }
};

}  // namespace mustafar::cuda
