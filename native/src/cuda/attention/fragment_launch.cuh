// The body of the launchers in fragment.h.
#pragma once

#include "cuda/attention/fragment.h"
#include "cuda/attention/fragment_kernel.cuh"

namespace mustafar::cuda {

template <class T, class D, int Tiles, int Warps>
void launch_fragment(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan) {
    constexpr int blocks_per_multiprocessor = (Tiles == 2 ? 8 : D::light ? 16 : 12) / Warps;
    static std::atomic<uint64_t> allowed{0}, allowed_clusters{0};
    const auto kernel = attention_fragment<T, D, Tiles, Warps, blocks_per_multiprocessor>;
    constexpr int static_bytes = fragment_static_bytes_bound(Tiles, D::has_shared, D::integers);
    static_assert(sizeof(FragmentMemory<D, Tiles, Warps>) + 128 <= static_bytes);
    allow_shared_memory(scope, kernel, allowed, static_bytes);
    constexpr int portable_cluster = 8;
    if (plan.cluster > portable_cluster) allow_large_clusters(scope, kernel, allowed_clusters);
    const int64_t tiles = int64_t{params.batch} * params.num_kv_heads * params.tiles;
    launch(scope, "attention", kernel,
           LaunchShape{tiles * plan.splits, Warps * 32, static_cast<size_t>(plan.shared_bytes), true, plan.cluster},
           params);
}

template <class T, class D>
void launch_fragment(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                     int tile_count) {
    // Light decoders leave registers for sixteen warps on a multiprocessor, in thread blocks of eight.
    switch (100 * tile_count + plan.warps) {
        case 108:
            if constexpr (D::light) return launch_fragment<T, D, 1, 8>(scope, params, plan);
            break;
        case 112:
            if constexpr (!D::light) return launch_fragment<T, D, 1, 12>(scope, params, plan);
            break;
        case 106:
            if constexpr (!D::light) return launch_fragment<T, D, 1, 6>(scope, params, plan);
            break;
        case 104: return launch_fragment<T, D, 1, 4>(scope, params, plan);
        case 208: return launch_fragment<T, D, 2, 8>(scope, params, plan);
        case 204: return launch_fragment<T, D, 2, 4>(scope, params, plan);
    }
    fail(MUSTAFAR_STATUS_INTERNAL_ERROR, "attention: no kernel for %d tiles and %d warps", tile_count, plan.warps);
}

}  // namespace mustafar::cuda
