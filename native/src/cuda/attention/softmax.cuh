// Online softmax of one warp over 32 tokens at a time, for tiles of 8 query rows.
//
// Scores come as tensor-core accumulators: score[a][0, 1] is token 16a + g against rows 2t, 2t + 1 and [2, 3] token
// 16a + g + 8. Probabilities leave as operand B of the value product, rounded to T.
#pragma once

#include <type_traits>

#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

constexpr float minus_infinity = -__builtin_huge_valf();

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t bits;
    if constexpr (std::is_same_v<T, __half>)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
    if constexpr (std::is_same_v<T, __half>)
        return __half22float2(*reinterpret_cast<const __half2*>(&pair));
    else
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// State of the rows 2t and 2t + 1 of a tile. `maximum` is the reference of the exponentials; it is raised only once a
// score exceeds it by 2^slack, so that most steps need no exchange between lanes. `sum` is this lane's share.
struct RowPair {
    static constexpr float slack = 8.0f;
    float maximum[2] = {minus_infinity, minus_infinity};
    float sum[2] = {0.0f, 0.0f};
};

// Scores (already masked: -infinity hides a token) to probabilities. accumulators: this tile's, [tile of 16 channels][4].
template <class T, int Tiles>
__device__ __forceinline__ void softmax_step(RowPair& rows, const float (&score)[2][4], float scale_log2,
                                             float (&accumulator)[Tiles][4], uint32_t (&probability)[4]) {
    // Rounded before the maximum is taken off: fused, what rounding leaves of a huge score would be its exponent.
    float scaled[2][4], highest[2];
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int i = 0; i < 4; ++i) scaled[a][i] = __fmul_rn(score[a][i], scale_log2);
#pragma unroll
    for (int r = 0; r < 2; ++r)
        highest[r] = fmaxf(fmaxf(scaled[0][r], scaled[0][r + 2]), fmaxf(scaled[1][r], scaled[1][r + 2]));
    const bool raise = highest[0] > rows.maximum[0] + RowPair::slack || highest[1] > rows.maximum[1] + RowPair::slack;
    if (__any_sync(full_warp, raise)) {
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
    }
    // A row that has seen nothing yet keeps exponents finite: its scores are all -infinity and give zeros.
    float reference[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) reference[r] = rows.maximum[r] == minus_infinity ? 0.0f : rows.maximum[r];
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        float e[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) e[i] = exp2_approximate(scaled[a][i] - reference[i & 1]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            // The sum takes what the product takes, so that rounding cancels where values are alike.
            const uint32_t pair = pack<T>(e[2 * i], e[2 * i + 1]);
            const float2 rounded = unpack<T>(pair);
            rows.sum[0] += rounded.x;
            rows.sum[1] += rounded.y;
            probability[2 * a + i] = transpose_matrix(pair);
        }
    }
}

}  // namespace mustafar::cuda
