// Operands of sparse products with blocks of a balanced pattern, whatever their values are stored as; common/balanced.cuh has the
// layout. T: the type that is multiplied.
#pragma once

#include "cuda/attention/query.cuh"
#include "cuda/common/balanced.cuh"

namespace mustafar::cuda {

// Dense rows, and queries among them, as the balanced pattern of keys arranges channels along k: lane 4g + t has the positions
// 2 (t & 1) and the next of the groups whose number's lowest bit is t >> 1.
template <int HeadDim>
struct BalancedRows {
    static constexpr int head_dim = HeadDim;
    static constexpr int part_words = 16;
    static constexpr int steps = HeadDim / 16;  // halves of a sparse product along k

    // First channel of word `word` of a lane's part.
    static constexpr int part_channel(int t, int word) {
        if (HeadDim == 128) return 64 * (t & 1) + 16 * (t >> 1) + 2 * word + (word < 8 ? 0 : 16);
        return 32 * (t & 1) + 2 * word;
    }

    template <class E>
    static __device__ __forceinline__ void load_part(uint32_t (&part)[part_words], const E* row, int t, bool aligned) {
        if constexpr (HeadDim == 128) {
            uint32_t low[8], high[8];
            load_row(low, row + part_channel(t, 0), aligned);
            load_row(high, row + part_channel(t, 8), aligned);
#pragma unroll
            for (int i = 0; i < 8; ++i) part[i] = low[i], part[8 + i] = high[i];
        } else {
            load_row(part, row + part_channel(t, 0), aligned);
        }
    }

    // The part of a row of which each lane has a quarter: lane t of four the channels D/4 t ....
    static __device__ __forceinline__ void from_quarters(const uint32_t (&quarter)[HeadDim / 8],
                                                         uint32_t (&part)[part_words], int t) {
#pragma unroll
        for (int i = 0; i < part_words; ++i) {
            const int from = 2 * (t & 1) + i / 8;
            part[i] = __shfl_sync(full_warp, quarter[i % 8], from, 4);
            if constexpr (HeadDim == 128) {
                const uint32_t second = __shfl_sync(full_warp, quarter[8 + i % 8], from, 4);
                if (t & 2) part[i] = second;
            }
        }
    }

    // Step 2s + h: registers 2h and 2h + 1 of product s.
    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&part)[part_words], int step, int t) {
        const int s = step >> 1, h = step & 1;
        if constexpr (HeadDim == 128) {
            const int word = (s >> 1) + 2 * (s & 1) + 4 * h;
            return {permute(part[word], part[8 + word], 0x5410u), permute(part[word], part[8 + word], 0x7632u)};
        } else {
            const int word = 2 * s + 4 * h;
            const uint32_t select = t & 2 ? 0x7632u : 0x5410u;
            return {permute(part[word], part[8 + word], select), permute(part[word + 1], part[9 + word], select)};
        }
    }
};

// A lane's words of positions.
template <int HeadDim>
struct Positions {
    uint32_t word[BalancedGeometry<HeadDim>::words];

    __device__ __forceinline__ Positions(uint32_t block, int lane) {
        if constexpr (HeadDim == 128) {
            const uint4 v = load_shared_u128(block + 16 * lane);
            word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
        } else {
            const uint2 v = load_shared_u64(block + 8 * lane);
            word[0] = v.x, word[1] = v.y;
        }
    }
};

// Product (a, s) of the keys with each tile of queries: tokens 16a ..., half of k or more at a time. Its number's lowest bit, which
// is that of s, has to be known when this is compiled.
template <class T, int Tiles, int Steps>
__device__ __forceinline__ void key_product(const QueryFragments<Steps, Tiles>& query, float (&score)[Tiles][2][4],
                                            int a, int s, const uint32_t (&reg)[4], uint32_t positions) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
        mma_sparse<T>(score[n][a], reg, query(n, 2 * s), query(n, 2 * s + 1), positions, s & 1);
}

// Product i of the values with each tile of probabilities.
template <class T, int Tiles, int ValueTiles>
__device__ __forceinline__ void value_product(const uint32_t (&probability)[Tiles][4],
                                              float (&accumulator)[Tiles][ValueTiles][4], int i,
                                              const uint32_t (&reg)[4], uint32_t positions) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
        mma_sparse<T>(accumulator[n][i], reg, {probability[n][0], probability[n][1]},
                      {probability[n][2], probability[n][3]}, positions, i & 1);
}

}  // namespace mustafar::cuda
