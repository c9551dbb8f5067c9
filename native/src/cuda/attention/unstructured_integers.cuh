// Unstructured blocks of integers, of 8 or 4 bits as the blocks say: a decoder with the interface of IntegerDecoder.
#pragma once

#include "cuda/attention/integer_operands.cuh"
#include "cuda/attention/integer_query.cuh"
#include "cuda/attention/unstructured_decoder.cuh"

namespace mustafar::cuda {

// 8-bit values in runs one after another; 4-bit ones of two runs in the same bytes.
class IntegerRuns {
public:
    using Multiplied = __half;
    static constexpr bool integers = true;
    static constexpr int value_bytes = 1;

    __device__ __forceinline__ explicit IntegerRuns(const Blocks& blocks)
        : pair_bytes_(blocks.keep * blocks.value_bits / 4), second_bytes_(blocks.value_bits == 8 ? blocks.keep : 0),
          scale_start_(blocks.block_bytes - 2 * block_tokens), byte_{blocks.value_bits}, masks_{byte_.mask(0),
                                                                                                byte_.mask(1)},
          second_power_(byte_.second_power()), second_scale_(1.0f / byte_.second_factor()) {}

    template <int Tokens>
    __device__ __forceinline__ uint32_t start(int token) const {
        const int run = token / Tokens;
        return Tokens * (run / 2 * pair_bytes_ + (run & 1) * second_bytes_);
    }
    __device__ __forceinline__ uint2 operand(uint2 values, int second) const {
        if (second) values.x *= second_power_, values.y *= second_power_;
        return {values.x & masks_[second], values.y & masks_[second]};
    }

    // Of the tokens 16a + 8h + g: [a][h], for operands as they are.
    template <int Tokens>
    __device__ __forceinline__ void scales(uint32_t block, int g, float (&scale)[2][2]) const {
        load_scales(block + scale_start_, g, scale);
        scale[1][1] *= second_scale_;
        (Tokens == 8 ? scale[0][1] : scale[1][0]) *= second_scale_;
    }

private:
    const uint32_t pair_bytes_, second_bytes_;  // for each token of a run: of two runs, and until the second starts
    const uint32_t scale_start_;
    const IntegerByte byte_;
    const uint32_t masks_[2], second_power_;
    const float second_scale_;
};

template <int HeadDim>
struct UnstructuredIntegerDecoder : UnstructuredDecoder<IntegerRuns, HeadDim>,
                                    IntegerSides<UnstructuredIntegerDecoder<HeadDim>> {
    using Base = UnstructuredDecoder<IntegerRuns, HeadDim>;
    using Base::Base;
    static constexpr float key_unit = IntegerByte::unit, value_unit = IntegerByte::unit;

    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        this->key_runs.template scales<run_tokens(HeadDim, true)>(block, this->g, scale);
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        this->value_runs.template scales<run_tokens(HeadDim, false)>(block, this->g, scale);
    }
};

}  // namespace mustafar::cuda
