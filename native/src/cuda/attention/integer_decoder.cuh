// How the fragment kernels read blocks of integers that are stored as operands: all channels or two of each four, of 8 or 4 bits;
// common/integers.cuh has the layout. Keys and values may differ: what the keys are, which decides how rows are laid out, is
// known when this is compiled, their bits and all about the values when it runs. Where both are of one format all of it is
// known, which makes it up to 10 % faster.
//
// Operands are f16 whatever the tensors' type: integers are exact in it, and scales stand outside of the products.
#pragma once

#include "cuda/attention/all_integers.cuh"
#include "cuda/attention/balanced_integers.cuh"
#include "cuda/attention/integer_query.cuh"
#include "cuda/attention/params.h"

namespace mustafar::cuda {

// Values of `void` and 0 bits: as the parameters say.
template <class Keys, class Values = void, int Bits = 0>
struct IntegerDecoder : Keys::Rows, IntegerSides<IntegerDecoder<Keys, Values, Bits>> {
    using Keys::Rows::head_dim;
    using Keys::Rows::steps;
    // light: takes few instructions and registers a block; then the memory's rate decides (heuristics.h).
    static constexpr bool has_shared = false, integers = true, light = true;
    static constexpr int value_tiles = head_dim / 16;
    static constexpr float unit = IntegerWord < Bits == 4 ? 4 : 8 > ::unit, key_unit = unit, value_unit = unit;

    const AttentionParams& p;  // what is read where it is used takes no register in between
    const int lane, g, t;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ IntegerDecoder(const Shared&, const AttentionParams& params, int lane_index)
        : p(params), lane(lane_index), g(lane_index >> 2), t(lane_index & 3) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        if (four_bits(p.keys))
            Keys::template multiply<4>(block, lane, query, score);
        else
            Keys::template multiply<8>(block, lane, query, score);
    }
    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        if constexpr (!std::is_void_v<Values>)
            values_of<Values>(block, probability, accumulator);
        else if (keeps_all(p.values.pattern))
            values_of<AllIntegerValues<head_dim>>(block, probability, accumulator);
        else
            values_of<BalancedIntegerValues<head_dim>>(block, probability, accumulator);
    }

    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        scales(block, p.keys, scale);
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        scales(block, p.values, scale);
    }

private:
    static __device__ __forceinline__ bool four_bits(const Blocks& blocks) {
        return Bits == 0 ? blocks.value_bits == 4 : Bits == 4;
    }

    // Of the tokens 16a + 8h + g: [a][h], for products in `unit`, which are larger for 4 bits.
    __device__ __forceinline__ void scales(uint32_t block, const Blocks& blocks, float (&scale)[2][2]) const {
        load_scales(block + blocks.block_bytes - 2 * block_tokens, g, scale);
        if constexpr (Bits == 0) {
            const float factor = four_bits(blocks) ? unit / IntegerWord<4>::unit : 1.0f;
#pragma unroll
            for (int i = 0; i < 4; ++i) scale[i >> 1][i & 1] *= factor;
        }
    }

    template <class Of, int Tiles>
    __device__ __forceinline__ void values_of(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                              float (&accumulator)[Tiles][value_tiles][4]) const {
        if (four_bits(p.values))
            Of::template multiply<4>(block, lane, probability, accumulator);
        else
            Of::template multiply<8>(block, lane, probability, accumulator);
    }
};

}  // namespace mustafar::cuda
