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

// Where the result of query row r of a KV head goes: head r % group of the group, query r / group.
template <class T>
struct OutputRow {
    T* channels;
    float* log_sum_exp;  // or null
    int query;

    __device__ __forceinline__ OutputRow(const AttentionParams& p, int sequence, int kv_head, uint32_t row) {
        query = p.by_group.split(row);
        const int head = kv_head * p.group + row;
        channels = p.output.row<T>(sequence, head, query);
        log_sum_exp = p.log_sum_exp == nullptr
                          ? nullptr
                          : p.log_sum_exp +
                                (static_cast<int64_t>(sequence) * p.num_kv_heads * p.group + head) * p.num_queries +
                                query;
    }

    __device__ __forceinline__ void store(int channel, float value) const { channels[channel] = rounded<T>(value); }
    // maximum: in base 2.
    __device__ __forceinline__ void store_log_sum_exp(float maximum, float sum) const {
        constexpr float ln2 = 0.693147180559945309f;
        if (log_sum_exp != nullptr) *log_sum_exp = sum == 0.0f ? minus_infinity : (maximum + log2f(sum)) * ln2;
    }
};

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

    // The final result. seen: whether the row sees any token. A sum of zero is otherwise one of scores that are all -infinity.
    template <int HeadDim, class T>
    __device__ __forceinline__ void store(const OutputRow<T>& row, int quad, bool seen) {
        if (seen)
            scale(1.0f / sum, false);
        else
            output = {};
        row.store(channel_at<HeadDim>(4 * quad), output.x);
        row.store(channel_at<HeadDim>(4 * quad + 1), output.y);
        row.store(channel_at<HeadDim>(4 * quad + 2), output.z);
        row.store(channel_at<HeadDim>(4 * quad + 3), output.w);
        if (quad == 0) row.store_log_sum_exp(maximum, sum);
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

// Puts together what the thread blocks of a cluster have of a tile: each sends every quad to one of them. Quads go in turns to the
// thread blocks, whose number is a power of two.
class ClusterExchange {
public:
    // `memory`: exchange_quad_bytes for each quad, and for one less than there are thread blocks. `barrier`: an mbarrier.
    __device__ __forceinline__ ClusterExchange(int blocks, int quads, uint32_t memory, uint32_t barrier)
        : blocks_(blocks), shift_(log2(blocks)), rank_(cluster_rank()), quads_(quads),
          room_((quads + blocks - 1) >> shift_), memory_(memory), barrier_(barrier) {}

    // By one thread, before it arrives at the cluster's barrier; behind that other thread blocks send.
    __device__ __forceinline__ void open() const {
        start_barrier(barrier_);
        expect_bytes(barrier_, own_quads() * blocks_ * exchange_quad_bytes);
    }

    // Sends quad number e, after the cluster's barrier.
    __device__ __forceinline__ void give(int e, const MergedQuad& merged) const {
        const uint32_t target = e & (blocks_ - 1), place = rank_ * room_ + (e >> shift_);
        const uint32_t barrier = cluster_address(barrier_, target);
        send(cluster_address(memory_ + 16 * place, target), merged.output, barrier);
        send(cluster_address(states() + 8 * place, target), make_float2(merged.maximum, merged.sum), barrier);
    }

    // Quads of this thread block; number i of them is quad number(i) of the tile.
    __device__ __forceinline__ int own_quads() const { return (quads_ - rank_ + blocks_ - 1) >> shift_; }
    __device__ __forceinline__ int number(int i) const { return i << shift_ | rank_; }

    // Quad i of this thread block over the whole cluster.
    __device__ __forceinline__ MergedQuad take(int i) const {
        wait_for_bytes(barrier_, 0);
        return MergedQuad(std::integral_constant<int, 8>{}, blocks_, [&](int rank, float2& state, float4& output) {
            const uint32_t place = rank * room_ + i;
            state = load_shared_f32x2(states() + 8 * place);
            output = load_shared_f32x4(memory_ + 16 * place);
        });
    }

private:
    static __device__ __forceinline__ int log2(int power) { return __ffs(power) - 1; }
    __device__ __forceinline__ uint32_t states() const { return memory_ + 16 * room_ * blocks_; }

    const int blocks_, shift_, rank_, quads_, room_;
    const uint32_t memory_, barrier_;
};

// One quad of a row of a tile over all its partial results.
template <int HeadDim>
__device__ __forceinline__ MergedQuad merge_partials(const AttentionParams& p, int64_t tile_of_all, int rows, int row,
                                                     int quad) {
    return MergedQuad(std::integral_constant<int, 16>{}, p.partials, [&](int part, float2& state, float4& output) {
        const int64_t at = partial_row(p, tile_of_all, part, rows) + row;
        state = __ldcg(p.partial_state + at);
        output = __ldcg(reinterpret_cast<const float4*>(p.partial_output + at * HeadDim) + quad);
    });
}

}  // namespace mustafar::cuda
