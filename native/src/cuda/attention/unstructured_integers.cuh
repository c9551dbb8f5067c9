// How the fragment kernels read unstructured blocks of integers, of 8 or 4 bits each; the same interface as IntegerDecoder.
#pragma once

#include "cuda/attention/integer_operands.cuh"
#include "cuda/attention/params.h"
#include "cuda/attention/unstructured_products.cuh"

namespace mustafar::cuda {

// 8-bit values in runs one after another; 4-bit ones of two runs in the same bytes.
class IntegerRuns {
public:
    using Multiplied = __half;
    static constexpr int value_bytes = 1;

    __device__ __forceinline__ explicit IntegerRuns(const Blocks& blocks)
        : pair_bytes_(blocks.keep * blocks.value_bits / 4), second_bytes_(blocks.value_bits == 8 ? blocks.keep : 0),
          scale_start_(blocks.block_bytes - 2 * block_tokens) {
        const IntegerByte byte{blocks.value_bits};
        mask_[0] = byte.mask(0), mask_[1] = byte.mask(1);
        second_shift_ = byte.second_shift();
        second_scale_ = 1.0f / byte.second_factor();
    }

    template <int Tokens>
    __device__ __forceinline__ uint32_t start(int token) const {
        const int run = token / Tokens;
        return Tokens * (run / 2 * pair_bytes_ + (run & 1) * second_bytes_);
    }
    __device__ __forceinline__ uint2 operand(uint2 values, int second) const {
        if (second) values.x <<= second_shift_, values.y <<= second_shift_;
        return {values.x & mask_[second], values.y & mask_[second]};
    }

    // Of the tokens 16a + 8h + g: [a][h], for operands as they are.
    template <int Tokens>
    __device__ __forceinline__ void scales(uint32_t block, int g, float (&scale)[2][2]) const {
        load_scales(block + scale_start_, g, scale);
        scale[1][1] *= second_scale_;
        (Tokens == 8 ? scale[0][1] : scale[1][0]) *= second_scale_;
    }

private:
    uint32_t pair_bytes_, second_bytes_;  // for each token of a run: of two runs, and until the second starts
    uint32_t scale_start_, mask_[2];
    int second_shift_;
    float second_scale_;
};

template <int HeadDim>
struct UnstructuredIntegerDecoder : UnstructuredRows<HeadDim> {
    using UnstructuredRows<HeadDim>::steps;
    static constexpr bool has_shared = false, integers = true, light = false;
    static constexpr int value_tiles = HeadDim / 16;
    static constexpr float key_unit = IntegerByte::unit, value_unit = IntegerByte::unit;

    const UnstructuredProducts<IntegerRuns, HeadDim> products;
    const int lane, g, t;
    const IntegerRuns key_runs, value_runs;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ UnstructuredIntegerDecoder(const Shared&, const AttentionParams& p, int lane_index)
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

    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        key_runs.template scales<run_tokens(HeadDim, true)>(block, g, scale);
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        value_runs.template scales<run_tokens(HeadDim, false)>(block, g, scale);
    }
};

}  // namespace mustafar::cuda
