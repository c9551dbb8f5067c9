// Online softmax over blocks of integers, whose tokens have scales.
//
// The reference of the exponentials is chosen by what a token adds to the output, weight times scale of the value, since that is
// what has to fit into f16. The sum of the weights is kept in f32, where it cannot overflow: scales are at least 2^-24.
#pragma once

#include "cuda/attention/softmax.cuh"

namespace mustafar::cuda {

// score: of tokens and rows as in softmax_step, in base 2, scaled and masked. value_scale: of the tokens 16a + 8h + g.
// Probabilities leave times their scales.
template <int Tiles>
__device__ __forceinline__ void softmax_step_scaled(RowPair& rows, const float (&score)[2][4],
                                                    const float (&value_scale)[2][2], float (&accumulator)[Tiles][4],
                                                    uint32_t (&probability)[4]) {
    constexpr float first_product = 0x1p6f;            // the largest, when the reference is set
    constexpr uint32_t largest_product = 0x78007800u;  // 2^15
    constexpr float largest_weights = 0x1p60f;         // of a lane and row
    constexpr float smallest_scale = 0x1p-24f;
    float weights[2];
    uint32_t pair[4];
    const auto weigh = [&] {
        // A row that has seen nothing yet keeps exponents finite: its scores are all -infinity and give zeros.
        float reference[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) reference[r] = rows.maximum[r] == minus_infinity ? 0.0f : rows.maximum[r];
        weights[0] = weights[1] = 0.0f;
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float low = exp2_approximate(score[a][2 * h] - reference[0]),
                            high = exp2_approximate(score[a][2 * h + 1] - reference[1]);
                weights[0] += low;
                weights[1] += high;
                pair[2 * a + h] = pack<__half>(low * value_scale[a][h], high * value_scale[a][h]);
            }
    };
    weigh();
    const uint32_t largest = max_f16x2(max_f16x2(pair[0], pair[1]), max_f16x2(pair[2], pair[3]));
    const bool raise = __vcmpgtu2(largest, largest_product) != 0 ||
                       !(fmaxf(weights[0], weights[1]) <= largest_weights) || rows.maximum[0] == minus_infinity ||
                       rows.maximum[1] == minus_infinity;
    if (__any_sync(full_warp, raise)) {
        float highest[2] = {minus_infinity, minus_infinity};
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float of_scale = __log2f(fmaxf(value_scale[a][h], smallest_scale) / first_product);
                // Rounded up: a reference that is too low would let products overflow.
                highest[0] = fmaxf(highest[0], __fadd_ru(score[a][2 * h], of_scale));
                highest[1] = fmaxf(highest[1], __fadd_ru(score[a][2 * h + 1], of_scale));
            }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes <<= 1)
                highest[r] = fmaxf(highest[r], __shfl_xor_sync(full_warp, highest[r], lanes));
            const float before = rows.maximum[r];
            rows.maximum[r] = fmaxf(before, highest[r]);
            const float factor = before == minus_infinity ? 0.0f : exp2_approximate(before - rows.maximum[r]);
            rows.sum[r] *= factor;
#pragma unroll
            for (int i = 0; i < Tiles; ++i) {
                accumulator[i][r] *= factor;
                accumulator[i][r + 2] *= factor;
            }
        }
        weigh();
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) rows.sum[r] += weights[r];
#pragma unroll
    for (int i = 0; i < 4; ++i) probability[i] = transpose_matrix(pair[i]);
}

}  // namespace mustafar::cuda
