// Sampling. Grid: one thread block a sequence, or a cluster of them where there are fewer sequences than multiprocessors.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/step/sampler.cuh"
#include "cuda/step/step.h"

namespace mustafar::cuda {
namespace {

struct Shared {
    ClusterMemory cluster;
    HistogramMemory histogram;
};

template <class T, bool Cached>
__global__ void __launch_bounds__(row_threads) sample_row(const __grid_constant__ SampleParams p) {
    __shared__ Shared shared;
    extern __shared__ __align__(16) uint8_t cache[];
    Cluster cluster(shared.cluster, p.cluster);
    Histogram histogram(shared.histogram, cluster);
    let_next_grid_start();
    wait_for_previous_grid();
    const int sequence = static_cast<int>(blockIdx.x) / p.cluster;
    const SampleRow<T, Cached> row(p, sequence, cluster, reinterpret_cast<uint4*>(cache));
    const int64_t step = p.steps[sequence];
    Sampler<T, Cached> sampler(row, cluster, histogram);
    int token = sampler.likeliest();
    bool writes = cluster.rank == 0 && threadIdx.x == 0;
    double log_sum_exp = NAN;
    if (token >= 0) {
        if (p.log_probabilities != nullptr) log_sum_exp = sampler.log_sum_exp();
        if (!sampling::is_greedy(row.options)) {
            token = sampler.draw(sampler.filters(), step);
            writes = token >= 0;
        }
    }
    // All have read the step, the counts and each other's shared memory.
    cluster.barrier();
    if (!writes) return;
    p.tokens[sequence] = token;
    if (p.log_probabilities != nullptr)
        p.log_probabilities[sequence] =
            static_cast<float>(token < 0 ? NAN : static_cast<double>(row.logit(token)) - log_sum_exp);
    if (token < 0) return;
    p.steps[sequence] = step + 1;
    if (p.counts != nullptr) ++p.counts[int64_t{sequence} * p.vocab_size + token];
}

// Thread blocks for each of so many rows: as many as run at the same time and have a tile for each warp.
int cluster_size(const DeviceProperties& device, int64_t batch, int64_t tiles) {
    if (device.compute_capability < 90) return 1;
    int size = 1;
    while (size < max_cluster && size * row_warps < tiles && 2 * size * batch <= device.multiprocessors) size *= 2;
    return size;
}

template <class T, bool Cached>
void start(const DeviceScope& scope, int64_t batch, int64_t cached_bytes, const SampleParams& p) {
    static std::atomic<uint64_t> allowed{0};
    const auto kernel = sample_row<T, Cached>;
    allow_shared_memory(scope, kernel, allowed, sizeof(Shared));
    launch(scope, "sampling", kernel,
           LaunchShape{batch * p.cluster, row_threads, static_cast<size_t>(cached_bytes), true, p.cluster}, p);
}

}  // namespace

void sample(const mustafar_context& context, const mustafar_sampling& sampling) {
    if (sampling.batch == 0) return;
    const DeviceScope scope(context);
    dispatch_dtype("sampling", sampling.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const int64_t tiles = divide_up(sampling.vocab_size, tile_tokens<T>);
        const int cluster = cluster_size(scope.properties(), sampling.batch, tiles);
        const int64_t warp_tiles = divide_up(tiles, cluster * row_warps);
        const SampleParams p{sampling.logits,
                             sampling.options,
                             sampling.steps,
                             sampling.counts,
                             sampling.prompt,
                             sampling.allowed,
                             sampling.allowed_stride,
                             divide_up(sampling.vocab_size, 32),
                             sampling.tokens,
                             sampling.log_probabilities,
                             sampling.vocab_size,
                             cluster,
                             static_cast<int32_t>(warp_tiles),
                             has_pieces(sampling.logits, sampling.vocab_size, sampling.dtype),
                             is_piece_aligned(sampling.counts) && sampling.vocab_size % 4 == 0};
        const int64_t cached_bytes = warp_tiles * row_warps * tile_key_bytes<T>;
        if (cached_bytes <= scope.properties().shared_memory_per_block - static_cast<int64_t>(sizeof(Shared)))
            start<T, true>(scope, sampling.batch, cached_bytes, p);
        else
            start<T, false>(scope, sampling.batch, 0, p);
    });
}

}  // namespace mustafar::cuda
