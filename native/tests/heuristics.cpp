// How CUDA attention spreads its work: what must hold of every plan, over devices, formats and shapes. Needs no device.
#include "cuda/attention/heuristics.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using namespace mustafar::cuda;

// multiprocessors, shared memory of a thread block and of a multiprocessor, clusters.
struct Device {
    const char* name;
    AttentionDevice limits;
};
constexpr Device devices[] = {{"8.0", {108, 163 << 10, 164 << 10, {108}}},
                              {"8.6", {84, 99 << 10, 100 << 10, {84}}},
                              {"9.0", {132, 227 << 10, 228 << 10, {132, 66, 32, 15, 6}}},
                              {"one multiprocessor", {1, 99 << 10, 100 << 10, {1}}}};

struct Case {
    const Device& device;
    AttentionFootprint footprint;
    AttentionWork work;
};

[[noreturn]] void stop(const Case& c, const AttentionPlan& plan, const char* what) {
    std::fprintf(stderr,
                 "heuristics.cpp: %s: %s, iteration of %lld bytes, %lld tiles, %lld blocks, %lld dense chunks: %d "
                 "warps, depth %d, %d splits, "
                 "cluster %d\n",
                 what, c.device.name, static_cast<long long>(c.footprint.iteration_bytes),
                 static_cast<long long>(c.work.tiles), static_cast<long long>(c.work.blocks),
                 static_cast<long long>(c.work.dense_chunks), plan.warps, plan.ring_depth, plan.splits, plan.cluster);
    std::exit(1);
}

// For head_dim 128 and 16-bit values of which `keep` are kept, as attention.cpp reckons.
AttentionFootprint footprint(int64_t keep, bool waits_for_memory) {
    constexpr int64_t dense_block = 512 + 32 * 128 * 2, row_of_outputs = (128 + 8) * 4;
    const int64_t stage = (512 + 64 * keep + 16 + 127) / 128 * 128;
    return {2 * stage, 0, 8 * row_of_outputs, dense_block, 3072, waits_for_memory, false};
}

// Likewise for integers of so many bits, all kept.
AttentionFootprint integer_footprint(int64_t bits, bool pairs) {
    constexpr int64_t row_of_outputs = (128 + 8) * 4;
    const auto stage = [&](int64_t blocks) {
        return 2 * int64_t{ring_stage_bytes(static_cast<uint32_t>(blocks * (512 * bits + 64)))};
    };
    return {stage(1), pairs ? stage(2) : 0, 8 * row_of_outputs, 0, 7168, true, true};
}

// Unstructured keys of 16-bit values, of which `keep` are kept, beside values that are 8-bit integers, all kept.
AttentionFootprint mixed_footprint(int64_t keep) {
    AttentionFootprint result = footprint(keep, false);
    result.iteration_bytes = (result.iteration_bytes + integer_footprint(8, false).iteration_bytes) / 2;
    result.fixed_bytes = 9216;
    return result;
}

template <int N>
AttentionPlan check_plan(const Case& c, const AttentionWarps (&candidates)[N]) {
    const AttentionDevice& limits = c.device.limits;
    const AttentionPlan plan = plan_attention(c.footprint, limits, c.work, candidates);
    const auto expect = [&](bool condition, const char* what) {
        if (!condition) stop(c, plan, what);
    };
    // Of candidates with as many warps, the one with the most thread blocks on a multiprocessor.
    const AttentionWarps* chosen = nullptr;
    for (const AttentionWarps& candidate : candidates)
        if (candidate.warps == plan.warps) chosen = &candidate;
    expect(chosen != nullptr, "there is a kernel of so many warps");
    expect(plan.ring_depth >= 1 && plan.ring_depth <= (c.footprint.light ? max_ring_depth : 2), "stages of the ring");
    expect(plan.ring_depth == 1 || c.footprint.waits_for_memory, "a second stage only where memory is waited for");
    expect(plan.span == 1 || (plan.span == 2 && c.footprint.pair_bytes != 0), "runs of two only where there are any");
    const int64_t stage_bytes = plan.span == 1 ? c.footprint.iteration_bytes : c.footprint.pair_bytes;
    expect(plan.warp_bytes >= plan.ring_depth * stage_bytes, "a warp's memory holds its ring");
    expect(plan.warp_bytes >= c.footprint.output_bytes, "a warp's memory holds its outputs");
    expect(plan.shared_bytes >= plan.warps * plan.warp_bytes + c.footprint.padding_bytes,
           "all warps have their memory");
    expect(plan.shared_bytes + c.footprint.fixed_bytes <= limits.shared_per_block, "the thread block fits");
    expect(plan.splits >= 1 && plan.splits <= max_splits, "1 to max_splits splits");
    const int64_t items = (c.work.blocks + plan.span - 1) / plan.span + c.work.dense_chunks;
    expect(plan.splits == 1 || plan.splits <= items, "no split is without items");
    const int* const size = std::find_if(limits.clusters, limits.clusters + cluster_sizes, [&](const int& count) {
        return plan.cluster == 1 << (&count - limits.clusters);
    });
    expect(size != limits.clusters + cluster_sizes && *size > 0, "clusters of a size that there is");
    expect(plan.splits % plan.cluster == 0, "clusters are whole");
    expect(plan.splits == plan.cluster || c.work.tiles <= max_counted_tiles, "partial results are counted");
    const int64_t resident =
        std::min<int64_t>(chosen->blocks_per_multiprocessor,
                          limits.shared_per_multiprocessor / (plan.shared_bytes + c.footprint.fixed_bytes));
    const int64_t slots = limits.multiprocessors * resident;
    expect(plan.splits == 1 || c.work.tiles % slots != 0, "tiles that fill the device in whole waves are not split");
    expect(plan.cluster <= 2 || c.work.tiles * plan.splits / plan.cluster <= *size * resident,
           "large clusters have room at the same time");
    return plan;
}

std::vector<AttentionWork> all_work() {
    std::vector<AttentionWork> result;
    for (const int64_t tiles : {int64_t{1}, int64_t{2}, int64_t{7}, int64_t{8}, int64_t{64}, int64_t{131}, int64_t{132},
                                int64_t{133}, int64_t{512}, max_counted_tiles, max_counted_tiles + 1, int64_t{100'000}})
        for (const int64_t blocks : {0, 1, 2, 11, 12, 13, 63, 64, 65, 258, 1026, 4098, 1 << 20})
            for (const int64_t dense_chunks : {0, 1, 4, 6}) result.push_back({tiles, blocks, dense_chunks});
    return result;
}

void check_grid() {
    constexpr int64_t keeps[] = {24, 40, 64, 96, 128};
    for (const Device& device : devices)
        for (const int64_t keep : keeps)
            for (const bool waits : {false, true})
                for (const AttentionWork& work : all_work()) {
                    const Case c{device, footprint(keep, waits), work};
                    check_plan(c, single_tile_warps);
                    check_plan(c, double_tile_warps);
                }
    for (const Device& device : devices)
        for (const int64_t keep : keeps)
            for (const AttentionWork& work : all_work()) {
                const Case c{device, mixed_footprint(keep), work};
                check_plan(c, single_tile_warps);
                check_plan(c, double_tile_warps);
            }
    for (const Device& device : devices)
        for (const int64_t bits : {4, 8})
            for (const bool pairs : {false, true})
                for (const AttentionWork& work : all_work()) {
                    const Case c{device, integer_footprint(bits, pairs), work};
                    check_plan(c, light_tile_warps);
                    check_plan(c, double_tile_warps);
                }
}

// One sequence over 8 KV heads keeps most multiprocessors busy, in one wave.
void check_long_sequence() {
    for (const int64_t blocks : {1026, 4098}) {
        const Case c{devices[2], footprint(40, false), {8, blocks, 4}};
        const AttentionPlan plan = check_plan(c, single_tile_warps);
        const int64_t warps = c.work.tiles * plan.splits * plan.warps,
                      all = int64_t{c.device.limits.multiprocessors} * 12;
        if (warps > all || 10 * warps < 9 * all) stop(c, plan, "nine tenths of the device's warps, in one wave");
    }
}

void check_too_large() {
    const Case c{devices[1], {1 << 20, 0, 4352, 8704, 3072, false, false}, {8, 1026, 4}};
    const AttentionPlan plan = plan_attention(c.footprint, c.device.limits, c.work, single_tile_warps);
    if (plan.warps != 0) stop(c, plan, "a block that fits nowhere has no plan");
}

}  // namespace

int main() {
    check_grid();
    check_long_sequence();
    check_too_large();
    std::puts("heuristics: all plans hold");
    return 0;
}
