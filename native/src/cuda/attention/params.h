// What the attention kernels read: the call's arguments in the form that suits the device.
#pragma once

#include "cuda/common/blocks.cuh"

namespace mustafar::cuda {

constexpr int chunk_tokens = 16;  // of the dense part: their keys and values fit into a warp's registers at once

// What a thread block of a cluster receives of a quad: four channels, their maximum and sum (attention/merge.cuh).
constexpr int exchange_quad_bytes = 24;

struct AttentionParams {
    Blocks keys, values;
    Dense query, output;             // [batch, num_heads, num_queries, head_dim]
    Dense tail_keys, tail_values;    // [slots, num_kv_heads, tail_capacity, head_dim]
    Dense fresh_keys, fresh_values;  // [batch, num_kv_heads, num_fresh, head_dim]
    const int32_t* sequences;        // [batch] slots, or null
    const int32_t* lengths;          // [slots]
    const int32_t* compressed;       // [slots]
    const int32_t* query_counts;     // [batch] or null
    const float* key_factors;        // [slots, num_kv_heads, head_dim] or null
    float* log_sum_exp;              // [batch, num_heads, num_queries] or null
    float* partial_output;           // [batch, num_kv_heads, tiles, partials, tile rows, head_dim]
    float2* partial_state;           // [batch, num_kv_heads, tiles, partials, tile rows] maximum (base 2), sum
    uint32_t* arrivals;              // [batch, num_kv_heads, tiles] zeros, left as zeros
    int32_t batch, num_slots, num_kv_heads, group, num_queries, num_fresh, tail_capacity, sliding_window;
    Divisor by_split, by_tile, by_kv_head, by_group;
    Divisor by_stride;      // warps of a tile's splits
    uint32_t table_blocks;  // that both page tables have entries for, or the most that can be counted
    int32_t tiles, splits;
    int32_t cluster;   // thread blocks of a cluster, a divisor of splits
    int32_t partials;  // results that the workspace takes for a tile: splits / cluster
    int32_t ring_depth;
    int32_t span;          // compressed blocks of an iteration: 1 or, of integers, 2
    int32_t warp_bytes;    // of shared memory
    bool crowded;          // every multiprocessor has thread blocks
    bool factors_aligned;  // to 16 bytes
    bool aligned;          // rows of query, tail and fresh tokens start at multiples of 16 bytes
    float scale_log2;      // scale * log2(e)
};

// Which query rows a tile, counted over the whole batch, has.
struct TilePlace {
    uint32_t row, kv_head, tile;  // row of the batch

    __device__ __forceinline__ TilePlace(const AttentionParams& p, uint32_t tile_of_all) : tile(tile_of_all) {
        kv_head = p.by_tile.split(tile);
        row = p.by_kv_head.split(kv_head);
    }
};

}  // namespace mustafar::cuda
