// Attention over blocks in plain order, one query row at a time. Made for coverage, not speed.
//
// Grid: x = query rows (sequence, head, query). The warps of a block share the row's items as in the fragment kernel.
#include "cuda/attention/dense_chunk.cuh"
#include "cuda/attention/merge.cuh"
#include "cuda/attention/portable.h"
#include "cuda/common/hadamard.cuh"
#include "cuda/common/plain_block.cuh"

namespace mustafar::cuda {
namespace {

constexpr int warps = 4;

// Online softmax state of a warp; channel 32j + lane in accumulator[j].
template <int Words>
struct RowState {
    float maximum = minus_infinity, sum = 0.0f, accumulator[Words] = {};

    // score: of the lane's token, base 2; -infinity hides it. Returns its probability.
    __device__ float step(float score) {
        float highest = score;
        for (int lanes = 1; lanes < 32; lanes <<= 1)
            highest = fmaxf(highest, __shfl_xor_sync(full_warp, highest, lanes));
        if (highest > maximum) {
            const float factor = maximum == minus_infinity ? 0.0f : exp2f(maximum - highest);
            maximum = highest;
            sum *= factor;
            for (int j = 0; j < Words; ++j) accumulator[j] *= factor;
        }
        // Comparing keeps a NaN score, which fmaxf drops, in the result.
        const float probability =
            score == minus_infinity ? 0.0f : exp2f(score - (maximum == minus_infinity ? 0.0f : maximum));
        sum += probability;
        return probability;
    }
};

template <class T, int Words>
__global__ void __launch_bounds__(warps * 32) attention_plain(const __grid_constant__ AttentionParams p, int head_dim) {
    __shared__ float query[32 * Words], outputs[warps][32 * Words];
    __shared__ float block_query[32 * Words];  // times the channel scales of keys in blocks
    __shared__ float2 states[warps];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int index = static_cast<int>(blockIdx.x % p.num_queries);
    const int heads = p.num_kv_heads * p.group;
    const int head = static_cast<int>(blockIdx.x / p.num_queries % heads), kv_head = head / p.group;
    const int batch_row = static_cast<int>(blockIdx.x / p.num_queries / heads), slot = slot_of(p, batch_row);
    const Sequence sequence(p, batch_row, slot, SequenceCounts(p, batch_row, slot));
    const bool present = index < sequence.queries;
    bool finite = true;
    for (int c = threadIdx.x; c < 32 * Words; c += warps * 32) {
        query[c] = present && c < head_dim ? widened(p.query.row<const T>(batch_row, head, index)[c]) : 0.0f;
        finite &= isfinite(query[c]);
    }
    // One number that is not makes all weights NaN, also where keys have it pruned.
    if (!__syncthreads_and(finite)) {
        for (int c = threadIdx.x; c < 32 * Words; c += warps * 32) query[c] = nanf("");
        __syncthreads();
    }

    const float* const factors =
        p.key_factors == nullptr ? nullptr
                                 : p.key_factors + (static_cast<int64_t>(slot) * p.num_kv_heads + kv_head) * head_dim;
    for (int c = threadIdx.x; c < 32 * Words; c += warps * 32)
        block_query[c] = factors == nullptr || c >= head_dim ? query[c] : query[c] * factors[c];
    __syncthreads();
    if (p.keys.rotated()) rotate_rows(block_query, 1, head_dim, head_dim);

    RowState<Words> state;
    const int first_seen = max(0, sequence.first_position(index)), last_seen = sequence.last_position(index);
    const auto hidden = [&](int position) { return position < first_seen || position > last_seen; };
    const int dense_items = sequence.tail_chunks + sequence.fresh_chunks;
    const int items = present ? dense_items + sequence.end_block - sequence.first_block : 0;
    for (int item = warp; item < items; item += warps) {
        if (item < dense_items) {
            const DenseChunk<T> chunk = dense_chunk<T>(p, sequence, kv_head, item);
            float score = minus_infinity;
            if (lane < chunk.count && !hidden(chunk.position + lane)) {
                const T* const row = chunk.key(lane);
                score = 0.0f;
                for (int c = 0; c < head_dim; ++c) score = fmaf(query[c], widened(row[c]), score);
                score *= p.scale_log2;
            }
            const float own = state.step(score);
            for (int token = 0; token < chunk.count; ++token) {
                if (hidden(chunk.position + token)) continue;
                const float probability = __shfl_sync(full_warp, own, token);
                const T* const row = chunk.value(token);
                for (int j = 0; j < Words; ++j)
                    if (32 * j + lane < head_dim)
                        state.accumulator[j] = fmaf(probability, widened(row[32 * j + lane]), state.accumulator[j]);
            }
        } else {
            const int block = sequence.first_block + item - dense_items, position = block * block_tokens;
            const bool masked = position + lane >= sequence.compressed || hidden(position + lane);
            float score = minus_infinity;
            {
                const PlainBlock<T, Words> keys(p.keys, head_dim, slot, kv_head, block, lane);
                if (!masked) score = keys.dot(block_query) * p.scale_log2;
            }
            const float own = state.step(score);
            const uint32_t seen = __ballot_sync(full_warp, !masked);
            const PlainBlock<T, Words> values(p.values, head_dim, slot, kv_head, block, lane);
            values.for_each_token(lane, [&](int token, int j, float value) {
                const float probability = __shfl_sync(full_warp, own, token);
                if (seen >> token & 1) state.accumulator[j] = fmaf(probability, value, state.accumulator[j]);
            });
        }
    }

    float sum = state.sum;
    for (int lanes = 1; lanes < 32; lanes <<= 1) sum += __shfl_xor_sync(full_warp, sum, lanes);
    if (lane == 0) states[warp] = make_float2(state.maximum, sum);
    for (int j = 0; j < Words; ++j) outputs[warp][32 * j + lane] = state.accumulator[j];
    __syncthreads();
    float maximum = minus_infinity, total = 0.0f;
    for (int w = 0; w < warps; ++w) maximum = fmaxf(maximum, states[w].x);
    float factor[warps];
    for (int w = 0; w < warps; ++w) {
        factor[w] = states[w].x == minus_infinity ? (states[w].y == 0.0f ? 0.0f : 1.0f) : exp2f(states[w].x - maximum);
        total += states[w].y * factor[w];
    }
    const OutputRow<T> target(p, batch_row, kv_head, index * p.group + head % p.group);
    const bool seen = present && last_seen >= 0;
    for (int c = threadIdx.x; c < head_dim; c += warps * 32) {
        float output = 0.0f;
        for (int w = 0; w < warps; ++w)
            if (factor[w] != 0.0f) output += outputs[w][c] * factor[w];
        target.store(c, seen ? output / total : 0.0f);
    }
    if (threadIdx.x == 0) target.store_log_sum_exp(maximum, total);
}

template <class T>
void launch_portable(const DeviceScope& scope, const AttentionParams& p, int head_dim) {
    const LaunchShape shape{int64_t{p.batch} * p.num_kv_heads * p.group * p.num_queries, warps * 32};
    const auto run = [&](auto kernel) { launch(scope, "attention", kernel, shape, p, head_dim); };
    switch (bitmap_words(head_dim)) {
        case 2: return run(attention_plain<T, 2>);
        case 3: return run(attention_plain<T, 3>);
        case 4: return run(attention_plain<T, 4>);
        case 8: return run(attention_plain<T, 8>);
        default: fail(MUSTAFAR_STATUS_UNSUPPORTED, "attention: no kernel for head_dim %d", head_dim);
    }
}

}  // namespace

void attention_portable(const DeviceScope& scope, const mustafar_format& format, const AttentionParams& params) {
    switch (format.dtype) {
        case MUSTAFAR_DTYPE_F32: return launch_portable<float>(scope, params, format.head_dim);
        case MUSTAFAR_DTYPE_F16: return launch_portable<__half>(scope, params, format.head_dim);
        case MUSTAFAR_DTYPE_BF16: return launch_portable<__nv_bfloat16>(scope, params, format.head_dim);
        default: fail(MUSTAFAR_STATUS_UNSUPPORTED, "attention: no kernel for dtype %d", format.dtype);
    }
}

}  // namespace mustafar::cuda
