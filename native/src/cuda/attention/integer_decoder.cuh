// How the fragment kernels read blocks of integers; common/integers.cuh has the layout.
//
// A decoder is made of what reads its keys and what reads its values. Operands are f16 whatever the tensors' type: integers are
// exact in it, and scales stand outside of the products. Scores and sums come in units of IntegerWord::unit.
#pragma once

#include "cuda/attention/integer_operands.cuh"
#include "cuda/attention/params.h"
#include "cuda/attention/query.cuh"

namespace mustafar::cuda {

template <class Keys, class Values>
struct IntegerDecoder : Keys::Rows {
    using Keys::Rows::head_dim;
    using Keys::Rows::steps;
    // light: takes few instructions and registers a block; then the memory's rate decides (heuristics.h).
    static constexpr bool has_shared = false, integers = true, light = true;
    static constexpr int value_tiles = head_dim / 16;
    static constexpr float key_unit = Keys::Geometry::Word::unit, value_unit = Values::Geometry::Word::unit;

    const int lane, g, t;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ IntegerDecoder(const Shared&, const AttentionParams&, int lane_index)
        : lane(lane_index), g(lane_index >> 2), t(lane_index & 3) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        Keys::multiply(block, lane, query, score);
    }
    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        Values::multiply(block, lane, probability, accumulator);
    }

    // Of the tokens 16a + 8h + g: [a][h].
    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        load_scales(block + Keys::Geometry::scale_start, g, scale);
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        load_scales(block + Values::Geometry::scale_start, g, scale);
    }
};

}  // namespace mustafar::cuda
