// Fused decode attention over fragment-ordered blocks and a dense tail.
//
// Grid: x = splits fastest, then tiles of 8 * Tiles query rows, then KV heads, then sequences.
// Every warp of every split works alone: of the items (runs of one or two compressed blocks, then dense chunks of 16 tokens) warp w
// takes w, w + warps, ... and begins with the dense ones, while its first blocks are on their way. Warps are counted over the splits
// first, which spreads the dense items over the splits. Warps of a thread block are
// merged through shared memory; with one split that is the result. Else the splits of a tile are clusters of thread blocks
// where the device has them, and merged through their shared memory. What is left over (several clusters, or splits
// without clusters) goes to the workspace, and the last thread block of a tile to arrive merges it.
//
// The next grid starts when this one has ended: the thread blocks of a product that start earlier crowd on the
// multiprocessors that are free of this one, and stay there. It cost a step of Llama-3-8B's layers 3 % for 8 sequences and 18 % for one (H200).
#pragma once

#include "cuda/attention/dense_chunk.cuh"
#include "cuda/attention/integer_query.cuh"
#include "cuda/attention/integer_softmax.cuh"
#include "cuda/attention/merge.cuh"
#include "cuda/common/ring.cuh"

namespace mustafar::cuda {

// Scores of tokens that a row must not see become -infinity. first: position of the first of 32 tokens, of which `count`
// exist.
template <int Tiles>
__device__ __forceinline__ void mask_scores(const AttentionParams& p, const Sequence& sequence, int first, int count,
                                            int first_row, int g, int t, float (&score)[Tiles][2][4]) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            uint32_t head = first_row + 8 * n + 2 * t + r;
            const int query = p.by_group.split(head);
            const int low = sequence.first_position(query) - first;
            const int high = min(sequence.last_position(query) - first, count - 1);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int token = 8 * i + g;
                if (token < low || token > high) score[n][i >> 1][(i & 1) * 2 + r] = minus_infinity;
            }
        }
}

// What makes scores, in base 2, of a row's products with blocks of integers. exponent: of its query.
template <class D>
__device__ __forceinline__ float row_factor(const AttentionParams& p, int exponent) {
    return p.scale_log2 * (1.0f / D::key_unit) * __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

template <int Tiles, int ValueTiles>
__device__ __forceinline__ void rescale(float (&accumulator)[Tiles][ValueTiles][4], float factor) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
        for (int i = 0; i < ValueTiles; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) accumulator[n][i][j] *= factor;
}

// How many of a walk's runs come before run `run`.
__device__ __forceinline__ int iterations_before(const AttentionParams& p, const Walk& walk, int run) {
    const int distance = run - static_cast<int>(walk.first);
    uint32_t rounded_up = distance + walk.stride - 1;
    return distance <= 0 ? 0 : p.by_stride.split(rounded_up);
}

// Blocks of integers have queries of their own, in f16 and times the keys' channel scales; those have the registers then.
template <class D, int Tiles>
using SharedQuery = QueryFragments<D::steps, Tiles, true>;
template <class D, int Tiles>
using DenseQuery = std::conditional_t<D::integers, SharedQuery<D, Tiles>, QueryFragments<D::steps, Tiles>>;

// Shared memory of fixed size; the rings, and later the warps' outputs, are in the dynamic part.
template <class D, int Tiles, int Warps>
struct FragmentMemory {
    uint64_t barriers[Warps][2 * max_ring_depth];
    float2 warp_state[Warps][8 * Tiles];  // maximum, sum
    uint64_t exchanged;                   // mbarrier of what the cluster sends
    int last;                             // whether this thread block is the tile's last one
    typename D::Shared decoder;
    uint2 query[DenseQuery<D, Tiles>::shared_pairs];
    uint2 block_query[D::integers ? SharedQuery<D, Tiles>::shared_pairs : 1];
    int exponent[8 * Tiles];  // of the block queries
};

template <class T, class D, int Tiles, int Warps, int BlocksPerSm>
__global__ void __launch_bounds__(Warps * 32, BlocksPerSm)
    attention_fragment(const __grid_constant__ AttentionParams p) {
    constexpr int rows = 8 * Tiles;
    constexpr int channels = D::head_dim;
    extern __shared__ __align__(128) uint8_t memory[];
    __shared__ FragmentMemory<D, Tiles, Warps> fixed;

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t split = blockIdx.x;
    const uint32_t tile_of_all = p.by_split.split(split);
    const TilePlace place(p, tile_of_all);
    const int kv_head = place.kv_head, first_row = place.tile * rows;
    const int rows_in_tile = min(rows, p.num_queries * p.group - first_row);

    const uint32_t stride = p.splits * Warps, item = warp * p.splits + split;
    const int batch_row = place.row;
    const uint32_t span = D::light ? p.span : 1;  // 1 or 2
    Walk walk{0, kv_head, item, stride, span, 0, 0};
    Ring<D::light ? 2 : 1> ring(p.keys, p.values, walk, shared_address(memory) + warp * p.warp_bytes,
                                shared_address(fixed.barriers[warp]), p.ring_depth, lane);
    constexpr int quads = channels / 4;
    const ClusterExchange exchange(p.cluster, rows_in_tile * quads, shared_address(memory) + Warps * p.warp_bytes,
                                   shared_address(&fixed.exchanged));
    D::prepare(fixed.decoder, p);
    const D decoder(fixed.decoder, p, lane);
    const int g = decoder.g, t = decoder.t;
    if (p.partials > 1 && threadIdx.x == 0) prefetch_l2(p.arrivals + tile_of_all);
    wait_for_previous_grid();
    // A query in shared memory is prepared by one warp for each tile, one in registers by all.
    DenseQuery<D, Tiles> query;
    query.attach(fixed.query, lane);
    const auto prepares = [&](int tile) { return !query.shared || warp == tile; };
    // All that the first iteration depends on is asked for before any of it is waited for: the query rows (those past
    // valid_rows, which nobody reads, too), the counts, and the page table as if nothing had left a sliding window.
    uint32_t query_row[Tiles][D::part_words];
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
        clear(query_row[n]);
        uint32_t head = first_row + 8 * n + g;
        const uint32_t index = p.by_group.split(head);
        if (8 * n + g < rows_in_tile && prepares(n))
            D::load_part(query_row[n], p.query.row<T>(batch_row, kv_head * p.group + head, index), t, p.aligned);
    }
    walk.slot = slot_of(p, batch_row);
    [[maybe_unused]] std::conditional_t<D::integers, ChannelScales<D>, int> scales;
    if constexpr (D::integers)
        if (warp < Tiles)
            scales.load(p.key_factors == nullptr
                            ? nullptr
                            : p.key_factors + (static_cast<int64_t>(walk.slot) * p.num_kv_heads + kv_head) * channels,
                        t, p.factors_aligned);
    const SequenceCounts counts(p, batch_row, walk.slot);
    ring.locate_first(p.table_blocks);
    const Sequence sequence(p, batch_row, walk.slot, counts);
    const int valid_rows = min(rows, sequence.queries * p.group - first_row);
    // Where a window slides, runs are single blocks.
    walk.first += sequence.first_block;
    walk.end = sequence.end_block;
    const uint32_t end_run = (sequence.end_block + span - 1) >> (span - 1);
    if (valid_rows > 0) walk.count = iterations_before(p, walk, end_run);
    if (p.sliding_window != 0) ring.locate(0);
    // This warp's dense items: those of number item, item + stride, ... behind the runs.
    const uint32_t dense_items = valid_rows > 0 ? sequence.tail_chunks + sequence.fresh_chunks : 0;
    const uint32_t first_dense = item + walk.count * stride - (end_run - sequence.first_block);

    // What all warps read beside blocks goes out before blocks do, where so many of light ones are asked for that it would wait for them.
    DenseChunk<T> chunk;
    DenseRows<T, D> dense;
    if (first_dense < dense_items) {
        chunk = dense_chunk<T>(p, sequence, kv_head, static_cast<int>(first_dense));
        dense.load(decoder, chunk, p.aligned);
    }
    if (D::light && p.crowded) __syncthreads();
    ring.start();
    if (p.cluster > 1) {
        if (threadIdx.x == 0) exchange.open();
        __syncwarp();
        cluster_arrive_relaxed();
    }

#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
        if (!prepares(n)) continue;
        spread_not_finite<T>(query_row[n]);
#pragma unroll
        for (int i = 0; i < D::steps; ++i) query.set(n, i, D::query_fragment(query_row[n], i, t), fixed.query, lane);
        if constexpr (D::integers) {
            const int exponent = decoder.template scale_block_query<T>(p, query_row[n], scales);
            if (t == 0) fixed.exponent[8 * n + g] = exponent;
            SharedQuery<D, Tiles> block_query;
            decoder.block_query_fragments(query_row[n], [&](int step, uint2 fragment) {
                block_query.set(n, step, fragment, fixed.block_query, lane);
            });
        }
    }
    if constexpr (query.shared || D::has_shared) __syncthreads();

    float accumulator[Tiles][D::value_tiles][4];
    RowPair state[Tiles];
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
        for (int i = 0; i < D::value_tiles; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) accumulator[n][i][j] = 0.0f;

    const auto softmax = [&](float(&score)[Tiles][2][4], uint32_t(&probability)[Tiles][4]) {
#pragma unroll
        for (int n = 0; n < Tiles; ++n)
            softmax_step<T>(state[n], score[n], p.scale_log2, accumulator[n], probability[n]);
    };

    for (uint32_t i = first_dense; i < dense_items; i += stride) {
        if (i != first_dense) {
            chunk = dense_chunk<T>(p, sequence, kv_head, static_cast<int>(i));
            dense.load(decoder, chunk, p.aligned);
        }
        float score[Tiles][2][4] = {};
        uint32_t probability[Tiles][4];
        dense.scores(decoder, query, score);
        mask_scores<Tiles>(p, sequence, chunk.position, chunk.count, first_row, g, t, score);
        softmax(score, probability);
        dense.sums(decoder, chunk, probability, accumulator);
    }
    QueryFragments<D::steps, Tiles> block_query;
    [[maybe_unused]] float row_scale[Tiles][2];
    if constexpr (D::integers) {
        block_query.take(fixed.block_query, lane);
#pragma unroll
        for (int n = 0; n < Tiles; ++n)
#pragma unroll
            for (int r = 0; r < 2; ++r) row_scale[n][r] = row_factor<D>(p, fixed.exponent[8 * n + 2 * t + r]);
        if (decoder.integer_values()) {
            // Dense tokens left their largest score as the reference. Weights of blocks meet their scales in f16, where so many more of
            // them stay normal numbers.
            constexpr float headroom = 14.0f, factor = 0x1p14f;
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
#pragma unroll
                for (int r = 0; r < 2; ++r) state[n].maximum[r] -= headroom, state[n].sum[r] *= factor;
            rescale(accumulator, D::value_unit * factor);
        }
    }
    // Iterations first_full ... first_full + full - 1 bring blocks that every row sees in full.
    const uint32_t full_end = max(0, min(sequence.compressed, sequence.last_position(0) + 1)) / block_tokens;
    const uint32_t full_first =
        (max(0, sequence.first_position(sequence.queries - 1)) + block_tokens - 1) / block_tokens;
    const int first_full = iterations_before(p, walk, full_first + span - 1 >> span - 1);
    const uint32_t full = max(0, iterations_before(p, walk, full_end >> span - 1) - first_full);
#pragma unroll 1
    for (int c = 0; c < walk.count; ++c) {
        const bool masked = static_cast<uint32_t>(c - first_full) >= full;
        const auto mask = [&](int block, float(&score)[Tiles][2][4]) {
            if (!masked) return;
            const int first = block * block_tokens;
            mask_scores<Tiles>(p, sequence, first, sequence.compressed - first, first_row, g, t, score);
        };
        if constexpr (D::integers) {
            uint32_t keys = ring.key(), values = 0;
            const uint32_t blocks = ring.blocks(c);
#pragma unroll 1
            for (uint32_t h = 0; h < blocks; ++h) {
                float score[Tiles][2][4] = {}, key_scale[2][2];
                uint32_t probability[Tiles][4];
                decoder.key_scales(keys, key_scale);
                decoder.keys(keys, block_query, score);
                if constexpr (D::releases_keys_early) ring.release_key(c);
#pragma unroll
                for (int n = 0; n < Tiles; ++n)
#pragma unroll
                    for (int a = 0; a < 2; ++a)
#pragma unroll
                        for (int i = 0; i < 4; ++i) score[n][a][i] *= key_scale[a][i >> 1] * row_scale[n][i & 1];
                mask(walk.block(c) + h, score);
                if (h == 0) values = ring.value(D::releases_keys_early);
                if (decoder.integer_values()) {
                    float value_scale[2][2];
                    decoder.value_scales(values, value_scale);
#pragma unroll
                    for (int n = 0; n < Tiles; ++n)
                        softmax_step_scaled(state[n], score[n], value_scale, accumulator[n], probability[n]);
                } else {
                    // Scores are in base 2 already.
#pragma unroll
                    for (int n = 0; n < Tiles; ++n)
                        softmax_step<T>(state[n], score[n], 1.0f, accumulator[n], probability[n]);
                }
                decoder.values(values, probability, accumulator);
                keys += p.keys.block_bytes;
                values += p.values.block_bytes;
            }
            if constexpr (!D::releases_keys_early) ring.release_key(c);
        } else {
            float score[Tiles][2][4] = {};
            uint32_t probability[Tiles][4];
            decoder.keys(ring.key(), query, score);
            ring.release_key(c);
            mask(walk.block(c), score);
            softmax(score, probability);
            decoder.values(ring.value(), probability, accumulator);
        }
        ring.release_value(c);
    }
    if constexpr (D::integers)
        if (decoder.integer_values()) rescale(accumulator, 1.0f / D::value_unit);

    // Every warp leaves what it has seen in its own part of the shared memory; then one thread sums up each quad over all
    // warps of the thread block, and one over those sums of the cluster. Rows are eight floats longer than their channels, so
    // that the lanes' stores are spread over the banks.
    constexpr int row_bytes = 4 * (channels + 8);
    uint8_t* const own_output = memory + warp * p.warp_bytes;
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = 8 * n + 2 * t + r;
            float sum = state[n].sum[r];
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes <<= 1) sum += __shfl_xor_sync(full_warp, sum, lanes);
            if (row >= valid_rows) continue;
            // Scores that are all NaN leave no maximum; their sum has to count.
            const float maximum = sum != sum ? 0.0f : state[n].maximum[r];
            if (g == 0) fixed.warp_state[warp][row] = make_float2(maximum, sum);
            float* const target = reinterpret_cast<float*>(own_output + row * row_bytes) + 2 * g;
#pragma unroll
            for (int i = 0; i < D::value_tiles; ++i)
                *reinterpret_cast<float2*>(target + 16 * i) =
                    make_float2(accumulator[n][i][r], accumulator[n][i][r + 2]);
        }
    __syncthreads();
    const auto output_row = [&](int row) { return OutputRow<T>(p, batch_row, kv_head, first_row + row); };
    const auto finish = [&](MergedQuad& merged, const OutputRow<T>& target, int row, int quad) {
        merged.template store<channels>(target, quad, row < valid_rows && sequence.last_position(target.query) >= 0);
    };
    const auto store = [&](MergedQuad& merged, const OutputRow<T>& target, int row, int quad) {
        if (p.partials == 1)
            finish(merged, target, row, quad);
        else
            merged.template store_partial<channels>(p, partial_row(p, tile_of_all, split / p.cluster, rows) + row,
                                                    quad);
    };
    if (p.cluster > 1) cluster_wait();
    for (int e = threadIdx.x; e < rows_in_tile * quads; e += Warps * 32) {
        const int row = e / quads, quad = e % quads;
        MergedQuad merged(
            std::integral_constant<int, Warps>{}, row < valid_rows ? Warps : 0,
            [&](int w, float2& part_state, float4& output) {
                part_state = fixed.warp_state[w][row];
                output = *reinterpret_cast<const float4*>(memory + w * p.warp_bytes + row * row_bytes + 16 * quad);
            });
        if (p.cluster == 1)
            store(merged, output_row(row), row, quad);
        else
            exchange.give(e, merged);
    }
    if (p.cluster > 1)
        for (int i = threadIdx.x; i < exchange.own_quads(); i += Warps * 32) {
            const int e = exchange.number(i), row = e / quads;
            const OutputRow<T> target = output_row(row);  // found while others send
            MergedQuad merged = exchange.take(i);
            store(merged, target, row, e % quads);
        }
    if (p.partials == 1) return;

    // The barrier puts the block's stores before the arrival that announces them.
    __syncthreads();
    const uint32_t last = p.splits - 1;
    if (threadIdx.x == 0) fixed.last = count_arrival(p.arrivals + tile_of_all, last) == last;
    __syncthreads();
    if (!fixed.last) return;
    for (int e = threadIdx.x; e < rows_in_tile * quads; e += Warps * 32) {
        const int row = e / quads, quad = e % quads;
        const OutputRow<T> target = output_row(row);
        MergedQuad merged = merge_partials<channels>(p, tile_of_all, rows, row, quad);
        finish(merged, target, row, quad);
    }
}

}  // namespace mustafar::cuda
