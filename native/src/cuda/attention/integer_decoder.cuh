// How the fragment kernels read blocks of integers that are stored as operands: all channels or two of each four, of 8 or 4 bits;
// common/integers.cuh has the layout. Keys and values may differ: what the keys are, which decides how rows are laid out, is
// known when this is compiled, their bits and all about the values when it runs.
//
// Operands are f16 whatever the tensors' type: integers are exact in it, and scales stand outside of the products.
#pragma once

#include "cuda/attention/all_integers.cuh"
#include "cuda/attention/balanced_integers.cuh"
#include "cuda/attention/params.h"

namespace mustafar::cuda {

// Scales of blocks whose operands come in units of their own.
class OperandScales {
public:
    static constexpr float unit = IntegerWord<8>::unit;

    __device__ __forceinline__ explicit OperandScales(const Blocks& blocks)
        : start_(blocks.block_bytes - 2 * block_tokens),
          factor_(blocks.value_bits == 4 ? unit / IntegerWord<4>::unit : 1.0f) {}

    // Of the tokens 16a + 8h + g: [a][h], for products in `unit`.
    __device__ __forceinline__ void load(uint32_t block, int g, float (&scale)[2][2]) const {
        load_scales(block + start_, g, scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) scale[i >> 1][i & 1] *= factor_;
    }

private:
    const uint32_t start_;
    const float factor_;
};

template <class Keys>
struct IntegerDecoder : Keys::Rows {
    using Keys::Rows::head_dim;
    using Keys::Rows::steps;
    static constexpr bool has_shared = false, integers = true;
    static constexpr int value_tiles = head_dim / 16;
    static constexpr float key_unit = OperandScales::unit, value_unit = OperandScales::unit;

    const int lane, g, t;
    const bool short_keys, short_values, all_values;
    const OperandScales key_scale, value_scale;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ IntegerDecoder(const Shared&, const AttentionParams& p, int lane_index)
        : lane(lane_index), g(lane_index >> 2), t(lane_index & 3), short_keys(p.keys.value_bits == 4),
          short_values(p.values.value_bits == 4), all_values(p.values.pattern == MUSTAFAR_PATTERN_ALL),
          key_scale(p.keys), value_scale(p.values) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        if (short_keys)
            Keys::template multiply<4>(block, lane, query, score);
        else
            Keys::template multiply<8>(block, lane, query, score);
    }
    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        if (all_values)
            values_of<AllIntegerValues<head_dim>>(block, probability, accumulator);
        else
            values_of<BalancedIntegerValues<head_dim>>(block, probability, accumulator);
    }

    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        key_scale.load(block, g, scale);
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        value_scale.load(block, g, scale);
    }

private:
    template <class Values, int Tiles>
    __device__ __forceinline__ void values_of(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                              float (&accumulator)[Tiles][value_tiles][4]) const {
        if (short_values)
            Values::template multiply<4>(block, lane, probability, accumulator);
        else
            Values::template multiply<8>(block, lane, probability, accumulator);
    }
};

}  // namespace mustafar::cuda
