// Reading a block of integers: its operands and its scales; common/integers.cuh has the layout.
#pragma once

#include "cuda/attention/softmax.cuh"
#include "cuda/common/integers.cuh"

namespace mustafar::cuda {

// Calls use(number, registers) for each operand. Geometry: one of IntegerOperands.
template <class Geometry, class Use>
__device__ __forceinline__ void for_each_operand(uint32_t block, int lane, Use&& use) {
    using Word = typename Geometry::Word;
#pragma unroll
    for (int i = 0; i < Geometry::operands; i += Geometry::operands_at_once) {
        const uint4 v = load_shared_u128(block + Geometry::word_byte(i, lane, 0));
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < Geometry::operands_at_once; ++j) {
            uint32_t word[Word::words], a[4];
#pragma unroll
            for (int w = 0; w < Word::words; ++w) word[w] = words[j * Word::words + w];
            Word::expand(word, a);
            use(i + j, a);
        }
    }
}

// Of the tokens 16a + 8h + g: [a][h]. first: where the scales start.
__device__ __forceinline__ void load_scales(uint32_t first, int g, float (&scale)[2][2]) {
    const uint2 four = load_shared_u64(first + 8 * g);
    const float2 low = unpack<__half>(four.x), high = unpack<__half>(four.y);
    scale[0][0] = low.x, scale[0][1] = low.y, scale[1][0] = high.x, scale[1][1] = high.y;
}

}  // namespace mustafar::cuda
