// One sequence as a kernel sees it: how many tokens, where they are, and what a query may see.
#pragma once

#include <climits>

#include "cuda/attention/params.h"

namespace mustafar::cuda {

// The slot of a row of the batch; one that there is not is read as the last.
__device__ __forceinline__ int slot_of(const AttentionParams& p, uint32_t row) {
    if (p.sequences == nullptr) return row;
    return min(static_cast<uint32_t>(__ldcg(p.sequences + row)), static_cast<uint32_t>(p.num_slots - 1));
}

// What the device's tables say of a sequence.
struct SequenceCounts {
    int length, compressed, queries;

    SequenceCounts() = default;
    __device__ __forceinline__ SequenceCounts(const AttentionParams& p, int row, int slot)
        : length(p.lengths[slot]), compressed(p.compressed[slot]),
          queries(p.query_counts == nullptr ? p.num_queries : p.query_counts[row]) {}
};

struct Sequence {
    int row, slot;       // in the batch, in the cache
    int queries, fresh;  // of this sequence
    int length, compressed;
    int first_block, end_block;  // compressed blocks that any query sees
    int tail_first, tail_chunks, fresh_chunks;
    int window;

    __device__ __forceinline__ Sequence(const AttentionParams& p, int batch_row, int cache_slot,
                                        const SequenceCounts& counts)
        : row(batch_row), slot(cache_slot), queries(min(counts.queries, p.num_queries)), length(counts.length) {
        fresh = p.num_fresh == 0 ? 0 : min(queries, length);
        window = p.sliding_window == 0 ? INT_MAX : p.sliding_window;
        compressed = min(counts.compressed, length - fresh);
        const int seen = max(0, first_position(0));
        first_block = seen / block_tokens;
        end_block = (compressed + block_tokens - 1) / block_tokens;
        first_block = min(first_block, end_block);
        tail_first = max(compressed, seen);
        const int tail_end = length - fresh;
        tail_chunks = p.tail_capacity == 0 ? 0 : (max(0, tail_end - tail_first) + chunk_tokens - 1) / chunk_tokens;
        fresh_chunks = (fresh + chunk_tokens - 1) / chunk_tokens;
    }

    // Query i sees the positions first_position(i) ... last_position(i).
    __device__ __forceinline__ int last_position(int query) const { return length - queries + query; }
    __device__ __forceinline__ int first_position(int query) const {
        return window > last_position(query) ? 0 : last_position(query) - window + 1;
    }
};

}  // namespace mustafar::cuda
