// How the fragment kernels read blocks of integers with all channels kept; common/integers.cuh has the layout.
//
// Operands are f16 whatever the tensors' type: integers are exact in it, and scales stand outside of the products. Scores and sums
// come in units of IntegerWord::unit.
#pragma once

#include "cuda/attention/params.h"
#include "cuda/attention/query.cuh"
#include "cuda/attention/softmax.cuh"
#include "cuda/common/integers.cuh"

namespace mustafar::cuda {

template <int HeadDim, int KeyBits, int ValueBits>
struct IntegerDecoder {
    static constexpr int head_dim = HeadDim;
    static constexpr bool has_shared = false, integers = true;
    static constexpr int part_words = HeadDim / 8;  // of a dense row, for one lane
    static constexpr int steps = HeadDim / 16;
    static constexpr int value_tiles = HeadDim / 16;
    using Keys = IntegerGeometry<HeadDim, KeyBits>;
    using Values = IntegerGeometry<HeadDim, ValueBits>;
    static constexpr float key_unit = Keys::Word::unit, value_unit = Values::Word::unit;

    const int lane, g, t;

    struct Shared {};
    static __device__ __forceinline__ void prepare(Shared&, const AttentionParams&) {}

    __device__ __forceinline__ IntegerDecoder(const Shared&, const AttentionParams&, int lane_index)
        : lane(lane_index), g(lane_index >> 2), t(lane_index & 3) {}

    // A lane's part of a dense row: channels D/4 t ....
    template <class E>
    static __device__ __forceinline__ void load_part(uint32_t (&part)[part_words], const E* row, int t, bool aligned) {
        load_row(part, row + 2 * part_words * t, aligned);
    }
    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&row)[part_words], int step, int) {
        return {row[2 * step], row[2 * step + 1]};
    }

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        for_each_operand<Keys>(block, [&](int operand, const uint32_t(&a)[4]) {
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                const uint2 q = query(n, operand % steps);
                mma_16816<__half>(score[n][operand / steps], a[0], a[1], a[2], a[3], q.x, q.y);
            }
        });
    }

    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        for_each_operand<Values>(block, [&](int operand, const uint32_t(&a)[4]) {
            const int k = operand & 1;
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
                mma_16816<__half>(accumulator[n][operand >> 1], a[0], a[1], a[2], a[3], probability[n][2 * k],
                                  probability[n][2 * k + 1]);
        });
    }

    // Of the tokens 16a + 8h + g: [a][h].
    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        scales(block + Keys::value_bytes, scale);
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        scales(block + Values::value_bytes, scale);
    }

private:
    template <class Geometry, class Use>
    __device__ __forceinline__ void for_each_operand(uint32_t block, Use&& use) const {
        using Word = typename Geometry::Word;
#pragma unroll
        for (int i = 0; i < Geometry::operands / Geometry::operands_at_once; ++i) {
            const uint4 v = load_shared_u128(block + (i * 32 + lane) * 16);
            const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < Geometry::operands_at_once; ++j) {
                uint32_t word[Word::words], a[4];
#pragma unroll
                for (int w = 0; w < Word::words; ++w) word[w] = words[j * Word::words + w];
                Word::expand(word, a);
                use(i * Geometry::operands_at_once + j, a);
            }
        }
    }

    __device__ __forceinline__ void scales(uint32_t first, float (&scale)[2][2]) const {
        const uint2 four = load_shared_u64(first + 8 * g);
        const float2 low = unpack<__half>(four.x), high = unpack<__half>(four.y);
        scale[0][0] = low.x, scale[0][1] = low.y, scale[1][0] = high.x, scale[1][1] = high.y;
    }
};

}  // namespace mustafar::cuda
