// How the work of one attention call is spread over a device: pure functions of counts and sizes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mustafar::cuda {

constexpr int max_splits = 64;
constexpr int max_warps = 16;  // on a multiprocessor: what their registers allow

// What a thread block needs, in bytes of shared memory.
struct AttentionFootprint {
    int64_t iteration_bytes;  // one key and one value block in a warp's ring
    int64_t output_bytes;     // a warp's share of the merge, in the same memory
    int64_t padding_bytes;    // that must be readable behind the ring
    int64_t fixed_bytes;      // statically allocated, and what the driver reserves
};

struct AttentionDevice {
    int multiprocessors;
    int64_t shared_per_block, shared_per_multiprocessor;
};

struct AttentionPlan {
    int warps;       // in a thread block; 0: nothing fits
    int ring_depth;  // iterations that a warp's ring holds
    int splits;      // thread blocks that share one tile of query rows
    int64_t shared_bytes;
};

constexpr int64_t attention_shared_bytes(const AttentionFootprint& footprint, int warps, int depth) {
    return std::max(warps * depth * footprint.iteration_bytes + footprint.padding_bytes,
                    warps * footprint.output_bytes);
}

// tiles: tiles of query rows in all. items: blocks and dense chunks of the longest sequence. Time is counted in
// iterations of a warp; starting and finishing a thread block costs about two, merging splits one.
inline AttentionPlan plan_attention(const AttentionFootprint& footprint, const AttentionDevice& device, int64_t tiles,
                                    int64_t items, int most_warps) {
    constexpr int64_t start_cost = 2, merge_cost = 1;
    AttentionPlan best{};
    int64_t best_cost = INT64_MAX;
    for (int warps = most_warps; warps >= 4; warps /= 2) {
        // The deeper ring, unless it would leave fewer thread blocks resident.
        int depth = 0;
        int64_t resident = 0;
        for (const int candidate : {1, 2}) {
            const int64_t bytes = attention_shared_bytes(footprint, warps, candidate) + footprint.fixed_bytes;
            const int64_t fitting =
                bytes > device.shared_per_block
                    ? 0
                    : std::min<int64_t>(max_warps / warps, device.shared_per_multiprocessor / bytes);
            if (fitting >= resident && fitting > 0) depth = candidate, resident = fitting;
        }
        if (depth == 0) continue;
        const int64_t slots = device.multiprocessors * resident;
        for (int splits = 1; splits <= max_splits; ++splits) {
            const int64_t waves = (tiles * splits + slots - 1) / slots;
            const int64_t share = int64_t{splits} * warps;
            const int64_t cost = waves * ((items + share - 1) / share + start_cost) + (splits > 1 ? merge_cost : 0);
            if (cost < best_cost) {
                best_cost = cost;
                best = {warps, depth, splits, attention_shared_bytes(footprint, warps, depth)};
            }
            if (share >= items) break;
        }
    }
    return best;
}

}  // namespace mustafar::cuda
