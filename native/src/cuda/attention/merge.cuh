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

// Rows of accumulators are kept in the order in which a warp's lanes hold them: position 16i + 2g + b is channel
// D/8 g + 2i + b. A quad is four positions.
template <int HeadDim>
__device__ __forceinline__ int channel_at(int position) {
    return HeadDim / 8 * (position >> 1 & 7) + 2 * (position >> 4) + (position & 1);
}

// Where the partial results of one part of one tile start, counted in rows.
__device__ __forceinline__ int64_t partial_row(const AttentionParams& p, int64_t tile_of_all, int part, int rows) {
    return (tile_of_all * p.partials + part) * rows;
}

// What several parts of the tokens (of warps, of splits) have given for one quad of one row.
struct MergedQuad {
    float maximum = minus_infinity, sum = 0.0f;
    float4 output = {0.0f, 0.0f, 0.0f, 0.0f};

    // load(i, state, output): maximum and sum, and the unscaled quad, of part i. Batch of them are loaded at once.
    template <int Batch, class Load>
    __device__ __forceinline__ MergedQuad(std::integral_constant<int, Batch>, int parts, Load&& load) {
#pragma unroll 1
        for (int first = 0; first < parts; first += Batch) {
            float2 state[Batch];
            float4 part[Batch];
#pragma unroll
            for (int i = 0; i < Batch; ++i) {
                state[i] = make_float2(minus_infinity, 0.0f);
                part[i] = {0.0f, 0.0f, 0.0f, 0.0f};
                if (first + i < parts) load(first + i, state[i], part[i]);
            }
            const float before = maximum;
#pragma unroll
            for (int i = 0; i < Batch; ++i) maximum = fmaxf(maximum, state[i].x);
            if (maximum == minus_infinity) continue;
            scale(exp2_approximate(before - maximum));
#pragma unroll
            for (int i = 0; i < Batch; ++i) {
                const float factor = exp2_approximate(state[i].x - maximum);
                sum = fmaf(state[i].y, factor, sum);
                output.x = fmaf(part[i].x, factor, output.x);
                output.y = fmaf(part[i].y, factor, output.y);
                output.z = fmaf(part[i].z, factor, output.z);
                output.w = fmaf(part[i].w, factor, output.w);
            }
        }
    }
    MergedQuad() = default;

    // The final result. row: of the KV head; seen: whether it sees any token. A sum of zero is otherwise one of scores that
    // are all -infinity.
    template <class T, int HeadDim>
    __device__ __forceinline__ void store(const AttentionParams& p, int sequence, int kv_head, int row, int quad,
                                          bool seen) {
        if (seen)
            scale(1.0f / sum, false);
        else
            output = {};
        store_output<T>(p, sequence, kv_head, row, channel_at<HeadDim>(4 * quad), output.x);
        store_output<T>(p, sequence, kv_head, row, channel_at<HeadDim>(4 * quad + 1), output.y);
        store_output<T>(p, sequence, kv_head, row, channel_at<HeadDim>(4 * quad + 2), output.z);
        store_output<T>(p, sequence, kv_head, row, channel_at<HeadDim>(4 * quad + 3), output.w);
        if (quad == 0) store_log_sum_exp(p, sequence, kv_head, row, maximum, sum);
    }

    // As one of several, in the workspace. at: row of the partial results.
    template <int HeadDim>
    __device__ __forceinline__ void store_partial(const AttentionParams& p, int64_t at, int quad) const {
        reinterpret_cast<float4*>(p.partial_output + at * HeadDim)[quad] = output;
        if (quad == 0) p.partial_state[at] = make_float2(maximum, sum);
    }

private:
    __device__ __forceinline__ void scale(float factor, bool with_sum = true) {
        if (with_sum) sum *= factor;
        output.x *= factor, output.y *= factor, output.z *= factor, output.w *= factor;
    }
};

// One quad of a row of a tile over all its partial results.
template <class T, int HeadDim>
__device__ __forceinline__ void merge_partials(const AttentionParams& p, int64_t tile_of_all, int rows, int row,
                                               int quad, int sequence, int kv_head, int first_row, bool seen) {
    MergedQuad merged(std::integral_constant<int, 16>{}, p.partials, [&](int part, float2& state, float4& output) {
        const int64_t at = partial_row(p, tile_of_all, part, rows) + row;
        state = __ldcg(p.partial_state + at);
        output = __ldcg(reinterpret_cast<const float4*>(p.partial_output + at * HeadDim) + quad);
    });
    merged.store<T, HeadDim>(p, sequence, kv_head, first_row + row, quad, seen);
}

}  // namespace mustafar::cuda
