// How the work of one attention call is spread over a device: pure functions of counts and sizes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mustafar::cuda {

constexpr int max_splits = 64;

// What a thread block needs, in bytes of shared memory.
struct AttentionFootprint {
    int64_t iteration_bytes;  // one key and one value block in a warp's ring
    int64_t output_bytes;     // what a warp leaves for the merge, in the same memory
    int64_t padding_bytes;    // that must be readable behind the ring
    int64_t fixed_bytes;      // statically allocated, and what the driver reserves
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

// Larger clusters than of two do not always find room: the groups of multiprocessors they must lie in differ in size.
constexpr int cluster_of(int splits) {
    return splits % 2 == 0 ? 2 : 1;
}

// The numbers of warps that kernels exist for, and what an iteration costs with so many on a multiprocessor, for each warp:
// with fewer there are more registers for each.
struct AttentionWarps {
    int warps;
    int blocks_per_multiprocessor;
    int iteration_cost;
};

constexpr AttentionWarps single_tile_warps[] = {{16, 1, 100}, {12, 1, 95}, {8, 2, 100}, {6, 2, 95}, {4, 4, 100}};
constexpr AttentionWarps double_tile_warps[] = {{8, 1, 100}, {4, 2, 100}};

// tiles: tiles of query rows in all. items: blocks and dense chunks of the longest sequence. Costs are hundredths of a
// warp's iteration. Starting and finishing a thread block takes about as long as two iterations of all warps of a
// multiprocessor, merging clusters as long as an eighth, merging in the workspace one half, and more for each part.
template <int N>
AttentionPlan plan_attention(const AttentionFootprint& footprint, const AttentionDevice& device, int64_t tiles,
                             int64_t items, const AttentionWarps (&candidates)[N]) {
    constexpr int64_t start_cost = 2 * 1600, cluster_cost = 200, merge_cost = 800, part_cost = 150;
    AttentionPlan best{};
    int64_t best_cost = INT64_MAX;
    for (const AttentionWarps& candidate : candidates) {
        const int warps = candidate.warps;
        // The deeper ring, unless it would leave fewer thread blocks resident.
        int depth = 0;
        int64_t resident = 0;
        for (const int deeper : {1, 2}) {
            const int64_t bytes = attention_shared_bytes(footprint, warps, deeper) + footprint.fixed_bytes;
            const int64_t fitting =
                bytes > device.shared_per_block
                    ? 0
                    : std::min<int64_t>(candidate.blocks_per_multiprocessor, device.shared_per_multiprocessor / bytes);
            if (fitting >= resident && fitting > 0) depth = deeper, resident = fitting;
        }
        if (depth == 0) continue;
        const int64_t slots = device.multiprocessors * resident;
        const int64_t iteration = candidate.iteration_cost * warps * resident;
        for (int splits = 1; splits <= max_splits; ++splits) {
            const int64_t waves = (tiles * splits + slots - 1) / slots;
            const int64_t share = int64_t{splits} * warps;
            const int cluster = device.clusters ? cluster_of(splits) : 1, partials = splits / cluster;
            const int64_t cost = waves * ((items + share - 1) / share * iteration + start_cost) +
                                 (cluster > 1 ? cluster_cost : 0) +
                                 (partials > 1 ? merge_cost + partials * part_cost : 0);
            if (cost < best_cost) {
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
