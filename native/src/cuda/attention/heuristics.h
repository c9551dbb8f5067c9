// How the work of one attention call is spread over a device: pure functions of counts and sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/common/architecture.h"
#include "cuda/common/ring_layout.h"
#include "mustafar/mustafar.h"

namespace mustafar::cuda {

constexpr int max_splits = 144;
constexpr int max_cluster = 1 << (cluster_sizes - 1);  // thread blocks

// Tiles that there are counters for in the workspace. More of them fill any device: none is split into several partial
// results, which would have to be counted.
constexpr int64_t max_counted_tiles = MUSTAFAR_WORKSPACE_COUNTER_BYTES / 4;

// What a thread block needs, in bytes of shared memory.
struct AttentionFootprint {
    int64_t iteration_bytes;  // one key and one value block in a warp's ring
    int64_t pair_bytes;       // two of each, side by side; 0: the kernel, or the cache, has no runs of two
    int64_t output_bytes;     // what a warp leaves for the merge, in the same memory
    int64_t padding_bytes;    // that must be readable behind the ring
    int64_t fixed_bytes;      // statically allocated, and what the driver reserves
    bool waits_for_memory;    // rather than for its own decoding
    bool light;               // blocks so light that the memory's rate decides
};

struct AttentionDevice {
    int multiprocessors;
    int64_t shared_per_block, shared_per_multiprocessor;
    int clusters[cluster_sizes];  // of 1, 2, 4, ... multiprocessors that run at the same time
};

struct AttentionPlan {
    int warps;       // in a thread block; 0: nothing fits
    int ring_depth;  // iterations that a warp's ring holds
    int span;        // compressed blocks of an iteration: 1 or 2
    int splits;      // thread blocks that share one tile of query rows
    int cluster;     // of them so many merge through each other's shared memory
    int64_t warp_bytes, shared_bytes;
};

// What a warp's ring holds.
struct RingShape {
    int depth, span;
};

constexpr int64_t attention_warp_bytes(const AttentionFootprint& footprint, RingShape ring) {
    return std::max(ring.depth * (ring.span == 1 ? footprint.iteration_bytes : footprint.pair_bytes),
                    footprint.output_bytes);
}

constexpr int64_t attention_shared_bytes(const AttentionFootprint& footprint, int warps, RingShape ring) {
    return warps * attention_warp_bytes(footprint, ring) + footprint.padding_bytes;
}

// What an attention call has to do. Dense chunks are of 16 tokens.
struct AttentionWork {
    int64_t tiles;         // of query rows, in all
    int64_t blocks;        // of the longest sequence
    int64_t dense_chunks;  // of a sequence, about
};

// The numbers of warps that kernels exist for. With one tile twelve warps share a multiprocessor, of light ones sixteen, with two tiles
// eight: what the registers allow.
struct AttentionWarps {
    int warps;
    int blocks_per_multiprocessor;
};

constexpr AttentionWarps single_tile_warps[] = {{12, 1}, {6, 2}, {4, 3}};
constexpr AttentionWarps light_tile_warps[] = {{8, 1}, {8, 2}, {4, 4}};
constexpr AttentionWarps double_tile_warps[] = {{8, 1}, {4, 2}};

// Light blocks come as fast as they are asked for: so many bytes of them have to be on their way on a multiprocessor (H200, H100).
constexpr RingShape light_ring(const AttentionFootprint& footprint, const AttentionWarps& warps) {
    constexpr int64_t bytes_on_their_way = 140 << 10;
    const int64_t fitting =
        bytes_on_their_way / (warps.warps * warps.blocks_per_multiprocessor * footprint.iteration_bytes);
    const int span = footprint.pair_bytes != 0 && fitting >= 2 ? 2 : 1;
    return {static_cast<int>(std::clamp<int64_t>(fitting / span, 1, max_ring_depth)), span};
}

// Whether so many clusters of 2^log_size thread blocks each run at the same time, or take turns without waiting for room. Pairs of
// multiprocessors are always there; larger clusters have to lie in one of the device's groups of multiprocessors, and those of 16
// have found room only as if they had a multiprocessor for each thread block (H200).
inline bool clusters_fit(const AttentionDevice& device, int log_size, int64_t clusters, int64_t fitting) {
    const int64_t resident = device.clusters[log_size];
    if (log_size <= 1) return resident > 0;
    return clusters <= resident * (log_size <= 3 ? fitting : 1);
}

// Costs are nanoseconds, fitted to the fastest of all plans from 1 to 64 KV heads of 1024 to 131072 tokens (H200). A thread block has to
// be started and finished. An iteration takes a latency, and longer for each warp that shares the multiprocessor. Then parts are merged:
// in a cluster, which takes longer for each doubling, and in the workspace, which takes longer for each part.
template <int N>
AttentionPlan plan_attention(const AttentionFootprint& footprint, const AttentionDevice& device,
                             const AttentionWork& work, const AttentionWarps (&candidates)[N]) {
    constexpr int64_t start_cost = 2750, cluster_cost = 450, merge_cost = 2250, part_cost = 75;
    const int64_t latency = footprint.light ? 1300 : 900;
    const int64_t block_cost =
        footprint.light ? std::clamp<int64_t>(footprint.iteration_bytes / 95, 1, 130) : 130;  // of one warp
    // Else a second stage of the ring pays for itself only where memory is waited for, in a long walk; in a short one it delays
    // the first blocks.
    constexpr int64_t long_walk = 16;
    const auto resident = [&](const AttentionWarps& candidate, RingShape ring) -> int64_t {
        const int64_t bytes = attention_shared_bytes(footprint, candidate.warps, ring) + footprint.fixed_bytes;
        if (bytes > device.shared_per_block) return 0;
        return std::min<int64_t>(candidate.blocks_per_multiprocessor, device.shared_per_multiprocessor / bytes);
    };
    AttentionPlan best{};
    int64_t best_cost = INT64_MAX;
    for (const AttentionWarps& candidate : candidates) {
        const int warps = candidate.warps;
        RingShape ring = footprint.light ? light_ring(footprint, candidate) : RingShape{1, 1};
        if (resident(candidate, ring) == 0) ring = {1, 1};
        const int64_t fitting = resident(candidate, ring);
        if (fitting == 0) continue;
        const bool deeper_fits = resident(candidate, {2, 1}) == fitting;
        const int64_t slots = device.multiprocessors * fitting;
        // Copies of single light blocks are a little too short.
        const bool short_copies = footprint.pair_bytes != 0 && ring.span == 1;
        const int64_t warp_cost = block_cost * ring.span * (short_copies ? 17 : 16) / 16;
        const int64_t items = std::max<int64_t>(1, (work.blocks + ring.span - 1) / ring.span + work.dense_chunks);
        for (int splits = 1; splits <= std::min<int64_t>(max_splits, items); ++splits) {
            const int64_t waves = (work.tiles * splits + slots - 1) / slots;
            // Where thread blocks are few they share multiprocessors with fewer others, or none.
            const int64_t sharing =
                std::min(fitting, (work.tiles * splits + device.multiprocessors - 1) / device.multiprocessors);
            const int64_t iteration = latency + warp_cost * warps * sharing;
            const int64_t share = int64_t{splits} * warps, walk = (items + share - 1) / share;
            // One item more for some of the warps costs half of an iteration: those that are done leave the others the multiprocessor.
            const int64_t walk_cost = (iteration * walk + iteration * (2 * items + share) / (2 * share)) / 2;
            for (int log_size = 0; log_size < cluster_sizes && splits % (1 << log_size) == 0; ++log_size) {
                const int cluster = 1 << log_size, partials = splits / cluster;
                if (!clusters_fit(device, log_size, work.tiles * partials, fitting)) continue;
                if (partials > 1 && work.tiles > max_counted_tiles) continue;
                const int64_t cost = waves * (walk_cost + start_cost) + cluster_cost * log_size +
                                     (partials > 1 ? merge_cost + partials * part_cost : 0);
                if (cost >= best_cost) continue;
                if (!footprint.light)
                    ring.depth = footprint.waits_for_memory && deeper_fits && walk >= long_walk ? 2 : 1;
                best_cost = cost;
                best = {warps,
                        ring.depth,
                        ring.span,
                        splits,
                        cluster,
                        attention_warp_bytes(footprint, ring),
                        attention_shared_bytes(footprint, warps, ring)};
            }
            if (share >= 2 * items) break;
        }
    }
    return best;
}

}  // namespace mustafar::cuda
