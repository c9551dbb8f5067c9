// How the work of one attention call is spread over a device: pure functions of counts and sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mustafar/mustafar.h"

namespace mustafar::cuda {

constexpr int max_splits = 144;

// Tiles that there are counters for in the workspace. More of them fill any device: none is split into several partial
// results, which would have to be counted.
constexpr int64_t max_counted_tiles = MUSTAFAR_WORKSPACE_COUNTER_BYTES / 4;

// What a thread block needs, in bytes of shared memory.
struct AttentionFootprint {
    int64_t iteration_bytes;  // one key and one value block in a warp's ring
    int64_t output_bytes;     // what a warp leaves for the merge, in the same memory
    int64_t padding_bytes;    // that must be readable behind the ring
    int64_t fixed_bytes;      // statically allocated, and what the driver reserves
    bool waits_for_memory;    // rather than for its own decoding
};

struct AttentionDevice {
    int multiprocessors;
    int64_t shared_per_block, shared_per_multiprocessor;
    bool clusters;
};

struct AttentionPlan {
    int warps;       // in a thread block; 0: nothing fits
    int ring_depth;  // iterations that a warp's ring holds
    int splits;      // thread blocks that share one tile of query rows
    int cluster;     // of them so many merge through each other's shared memory
    int64_t warp_bytes, shared_bytes;
};

constexpr int64_t attention_warp_bytes(const AttentionFootprint& footprint, int depth) {
    return std::max(depth * footprint.iteration_bytes, footprint.output_bytes);
}

constexpr int64_t attention_shared_bytes(const AttentionFootprint& footprint, int warps, int depth) {
    return warps * attention_warp_bytes(footprint, depth) + footprint.padding_bytes;
}

// A cluster pays where it does without the workspace, not where it only halves the parts there. Larger ones than of two do
// not always find room: the groups of multiprocessors they must lie in differ in size.
constexpr int cluster_of(int splits) {
    return splits == 2 ? 2 : 1;
}

// The numbers of warps that kernels exist for. With one tile twelve warps share a multiprocessor, with two eight: what the
// registers allow.
struct AttentionWarps {
    int warps;
    int blocks_per_multiprocessor;
};

constexpr AttentionWarps single_tile_warps[] = {{12, 1}, {6, 2}, {4, 3}};
constexpr AttentionWarps double_tile_warps[] = {{8, 1}, {4, 2}};

// tiles: tiles of query rows in all. items: blocks and dense chunks of the longest sequence. Costs are hundredths of a
// warp's iteration. Starting and finishing a thread block takes about as long as two iterations of all warps of a
// multiprocessor, merging a cluster half of one, merging in the workspace one, and more for each part.
template <int N>
AttentionPlan plan_attention(const AttentionFootprint& footprint, const AttentionDevice& device, int64_t tiles,
                             int64_t items, const AttentionWarps (&candidates)[N]) {
    constexpr int64_t start_cost = 2000, cluster_cost = 500, merge_cost = 1200, part_cost = 30;
    // A second stage of the ring pays for itself only where memory is waited for, in a long walk; in a short one it delays
    // the first blocks.
    constexpr int64_t long_walk = 16;
    const auto resident = [&](const AttentionWarps& candidate, int depth) -> int64_t {
        const int64_t bytes = attention_shared_bytes(footprint, candidate.warps, depth) + footprint.fixed_bytes;
        if (bytes > device.shared_per_block) return 0;
        return std::min<int64_t>(candidate.blocks_per_multiprocessor, device.shared_per_multiprocessor / bytes);
    };
    AttentionPlan best{};
    int64_t best_cost = INT64_MAX;
    for (const AttentionWarps& candidate : candidates) {
        const int warps = candidate.warps;
        const int64_t fitting = resident(candidate, 1);
        if (fitting == 0) continue;
        const bool deeper_fits = resident(candidate, 2) == fitting;
        const int64_t slots = device.multiprocessors * fitting;
        const int64_t iteration = 100 * warps * fitting;
        for (int splits = 1; splits <= max_splits; ++splits) {
            const int64_t waves = (tiles * splits + slots - 1) / slots;
            const int64_t share = int64_t{splits} * warps, walk = (items + share - 1) / share;
            const int cluster = device.clusters ? cluster_of(splits) : 1, partials = splits / cluster;
            if (partials > 1 && tiles > max_counted_tiles) break;
            const int64_t cost = waves * (walk * iteration + start_cost) + (cluster > 1 ? cluster_cost : 0) +
                                 (partials > 1 ? merge_cost + partials * part_cost : 0);
            if (cost < best_cost) {
                const int depth = footprint.waits_for_memory && deeper_fits && walk >= long_walk ? 2 : 1;
                best_cost = cost;
                best = {warps,
                        depth,
                        splits,
                        cluster,
                        attention_warp_bytes(footprint, depth),
                        attention_shared_bytes(footprint, warps, depth)};
            }
            if (share >= items) break;
        }
    }
    return best;
}

}  // namespace mustafar::cuda
