// The second launch of a split attention that could not merge by itself: one thread block per query row.
#pragma once

#include "cuda/attention/heuristics.h"
#include "cuda/attention/merge.cuh"

namespace mustafar::cuda {

// Grid: x = rows of a tile fastest, then tile_of_all as in attention_fragment. One thread per channel.
template <class T>
__global__ void merge_splits(const __grid_constant__ AttentionParams p, int rows) {
    __shared__ float2 states[max_splits];
    const int64_t tile_of_all = blockIdx.x / rows;
    const int tile = static_cast<int>(tile_of_all % p.tiles);
    const int kv_head = static_cast<int>(tile_of_all / p.tiles % p.num_kv_heads);
    const int sequence = static_cast<int>(tile_of_all / p.tiles / p.num_kv_heads);
    const int row_in_tile = blockIdx.x % rows, row = tile * rows + row_in_tile;
    const int channel = threadIdx.x, channels = blockDim.x;
    wait_for_previous_grid();
    if (row >= p.num_queries * p.group) return;
    for (int s = channel; s < p.splits; s += channels)
        states[s] = __ldcg(&p.partial_state[partial_row(p, tile_of_all, s, rows) + row_in_tile]);
    __syncthreads();
    merge_element<T>(p, states, 1, tile_of_all, rows, row_in_tile, sequence, kv_head, tile * rows, channel, channels);
}

}  // namespace mustafar::cuda
