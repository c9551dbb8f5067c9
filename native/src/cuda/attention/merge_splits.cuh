// The second launch of a split attention that could not merge by itself: one thread block per query row.
#pragma once

#include "cuda/attention/merge.cuh"

namespace mustafar::cuda {

// Grid: x = rows of a tile fastest, then tile_of_all as in attention_fragment. One thread for four channels.
template <class T, int HeadDim>
__global__ void __launch_bounds__(HeadDim / 4) merge_splits(const __grid_constant__ AttentionParams p, int rows) {
    const uint32_t tile_of_all = blockIdx.x / rows;
    const TilePlace place(p, tile_of_all);
    const int row = blockIdx.x % rows, first_row = place.tile * rows;
    wait_for_previous_grid();
    if (first_row + row < p.num_queries * p.group)
        merge_partials<T, HeadDim>(p, tile_of_all, rows, row, threadIdx.x, place.sequence, place.kv_head, first_row);
}

}  // namespace mustafar::cuda
