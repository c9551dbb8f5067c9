// Puts together what the warps of a thread block, and then the splits of a sequence, have seen of the same query rows.
#pragma once

#include "cuda/attention/sequence.cuh"
#include "cuda/attention/softmax.cuh"

namespace mustafar::cuda {

template <class T>
__device__ __forceinline__ T rounded(float value) {
    if constexpr (std::is_same_v<T, float>)
        return value;
    else if constexpr (std::is_same_v<T, __half>)
        return __float2half_rn(value);
    else
        return __float2bfloat16_rn(value);
}

// Query row r of a KV head: head r % group of the group, query r / group.
template <class T>
__device__ __forceinline__ void store_output(const AttentionParams& p, int sequence, int kv_head, int row, int channel,
                                             float value) {
    const int head = kv_head * p.group + row % p.group;
    p.output.row<T>(sequence, head, row / p.group)[channel] = rounded<T>(value);
}

__device__ __forceinline__ void store_log_sum_exp(const AttentionParams& p, int sequence, int kv_head, int row,
                                                  float maximum, float sum) {
    if (p.log_sum_exp == nullptr) return;
    const int64_t head = static_cast<int64_t>(sequence) * p.num_kv_heads * p.group + kv_head * p.group + row % p.group;
    constexpr float ln2 = 0.693147180559945309f;
    p.log_sum_exp[head * p.num_queries + row / p.group] = sum == 0.0f ? minus_infinity : (maximum + log2f(sum)) * ln2;
}

// Where the partial results of one split of one tile start, counted in rows.
__device__ __forceinline__ int64_t partial_row(const AttentionParams& p, int64_t tile_of_all, int split, int rows) {
    return (tile_of_all * p.splits + split) * rows;
}

// Adds up what the splits have seen of one element of a row. `states`: one for each split, `stride` apart.
template <class T>
__device__ __forceinline__ void merge_element(const AttentionParams& p, const float2* states, int stride,
                                              int64_t tile_of_all, int rows, int row_in_tile, int sequence, int kv_head,
                                              int first_row, int channel, int channels) {
    float maximum = minus_infinity;
    for (int s = 0; s < p.splits; ++s) maximum = fmaxf(maximum, states[s * stride].x);
    const float* const outputs =
        p.partial_output + (partial_row(p, tile_of_all, 0, rows) + row_in_tile) * channels + channel;
    constexpr int batch = 16;  // loads on their way at once
    float sum = 0.0f, output = 0.0f;
    for (int first = 0; first < p.splits; first += batch) {
        float part[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i)
            part[i] = __ldcg(outputs + static_cast<int64_t>(min(first + i, p.splits - 1)) * rows * channels);
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const float2 state = states[min(first + i, p.splits - 1) * stride];
            const bool counts = first + i < p.splits && state.x != minus_infinity;
            const float factor = counts ? exp2_approximate(state.x - maximum) : 0.0f;
            sum = fmaf(state.y, factor, sum);
            output = fmaf(part[i], factor, output);
        }
    }
    store_output<T>(p, sequence, kv_head, first_row + row_in_tile, channel, sum == 0.0f ? 0.0f : output / sum);
    if (channel == 0) store_log_sum_exp(p, sequence, kv_head, first_row + row_in_tile, maximum, sum);
}

}  // namespace mustafar::cuda
