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
#include "cuda/attention/unstructured_products.cuh"

namespace mustafar::cuda {

// Values in the tensor's type, one run of them after another.
template <class T>
struct NativeRuns {
    using Multiplied = T;
    static constexpr int value_bytes = 2;
    uint32_t token_bytes;

    __device__ __forceinline__ explicit NativeRuns(const Blocks& blocks) : token_bytes(2 * blocks.keep) {}
    // First byte of the run whose first token is `token`, and what its values are as operands.
    template <int Tokens>
    __device__ __forceinline__ uint32_t start(int token) const {
        return token * token_bytes;
    }
    __device__ __forceinline__ uint2 operand(uint2 values, int) const { return values; }
};

template <class T, int HeadDim>
struct Decoder : UnstructuredRows<HeadDim> {
    using UnstructuredRows<HeadDim>::steps;
    static constexpr bool has_shared = false, integers = false, light = false;
    static constexpr int value_tiles = HeadDim / 16;

    const UnstructuredProducts<NativeRuns<T>, HeadDim> products;
    const int lane, g, t;
    const NativeRuns<T> key_runs, value_runs;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ Decoder(const Shared&, const AttentionParams& p, int lane_index)
        : products(lane_index), lane(lane_index), g(lane_index >> 2), t(lane_index & 3), key_runs(p.keys),
          value_runs(p.values) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        products.keys(block, key_runs, query, score);
    }
    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        products.values(block, value_runs, probability, accumulator);
    }
};

}  // namespace mustafar::cuda
