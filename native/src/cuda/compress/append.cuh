// What a kernel that appends to a cache takes, and the work of one of its thread blocks.
#pragma once

#include "core/compression_rule.h"
#include "cuda/common/dispatch.h"
#include "cuda/common/divisor.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_writer.cuh"
#include "cuda/compress/compress.h"
#include "cuda/compress/key_factors.cuh"

namespace mustafar::cuda {

// Thread blocks that share a multiprocessor. Most have one token to write, and are as fast as all of them run at once; registers that a
// group to be compressed then lacks cost it little.
template <int HeadDim>
constexpr int append_blocks = HeadDim <= 128 ? 8 : 4;

struct AppendParams {
    Dense fresh[2], tail[2];  // keys, values
    Blocks blocks[2];
    ValueOrder order[2];
    const int32_t* sequences;    // or null
    const int32_t* counts;       // or null
    const int32_t* lengths;      // [slots]
    const int32_t* compressed;   // [slots]
    int32_t* new_lengths;        // [slots] or null
    int32_t* new_compressed;     // [slots] or null
    float* key_factors;          // [slots, heads, head_dim] or null
    const float* importance[2];  // [slots, heads, head_dim] or null
    const uint32_t* bitmap[2];   // [batch, heads, bitmap_tokens, words] or null
    Divisor by_part, by_head;
    int32_t num_slots, num_tokens, lookahead, group_size, local_window, tail_capacity, bitmap_tokens;
    bool aligned;

    explicit AppendParams(const mustafar_append& a)
        : fresh{a.new_keys, a.new_values}, tail{a.tail_keys, a.tail_values}, blocks{Blocks(a.keys, a.num_kv_heads),
                                                                                    Blocks(a.values, a.num_kv_heads)},
          order{value_order(a.keys.format, true), value_order(a.values.format, false)}, sequences(a.sequences),
          counts(a.counts), lengths(a.lengths), compressed(a.compressed), new_lengths(a.new_lengths),
          new_compressed(a.new_compressed),
          key_factors(a.key_factors), importance{a.key_importance, a.value_importance}, bitmap{a.key_bitmap,
                                                                                               a.value_bitmap},
          by_part(static_cast<uint32_t>(1 + a.num_tokens / block_tokens)),
          by_head(static_cast<uint32_t>(a.num_kv_heads)), num_slots(a.num_slots), num_tokens(a.num_tokens),
          lookahead(a.lookahead), group_size(a.group_size), local_window(a.local_window),
          tail_capacity(a.tail_capacity), bitmap_tokens(a.bitmap_tokens) {
        const int element = element_bytes(a.keys.format.dtype);
        aligned =
            is_vector_aligned(a.tail_keys, element) && is_vector_aligned(a.tail_values, element) &&
            (a.num_tokens == 0 || (is_vector_aligned(a.new_keys, element) && is_vector_aligned(a.new_values, element)));
    }

    // Whether the caller chooses the channels of keys or of values.
    bool chosen() const {
        return importance[0] != nullptr || importance[1] != nullptr || bitmap[0] != nullptr || bitmap[1] != nullptr;
    }
};

// The tokens of one sequence and head, before and after.
template <class T>
struct AppendedTokens {
    const AppendParams& p;
    const T* fresh;                    // the first new token's row
    int batch_row, slot, head, which;  // keys, values
    int before, compressed, length, due;

    __device__ __forceinline__ AppendedTokens(const AppendParams& params, int row_of_batch, int head_index,
                                              int which_of_two)
        : p(params), batch_row(row_of_batch), head(head_index), which(which_of_two) {
        slot = p.sequences == nullptr ? batch_row : p.sequences[batch_row];
        if (!exists()) return;
        fresh = p.fresh[which].row<const T>(batch_row, head, 0);
        before = p.lengths[slot], compressed = p.compressed[slot];
        const int count = p.counts == nullptr ? p.num_tokens : min(max(p.counts[batch_row], 0), p.num_tokens);
        length = before + count;
        due = max(compressed, compressed_tokens(length, p.lookahead, p.local_window, p.group_size));
    }

    __device__ __forceinline__ bool exists() const { return slot >= 0 && slot < p.num_slots; }
    __device__ __forceinline__ const T* row(int token) const {
        return token < before ? p.tail[which].row<const T>(slot, head, token % p.tail_capacity)
                              : fresh + (token - before) * p.fresh[which].token_stride;
    }
    // Whether channel scales are to be computed.
    __device__ __forceinline__ bool compresses_first() const {
        return p.key_factors != nullptr && which == 0 && compressed == 0 && due > 0;
    }
};

// Part 0 compresses the blocks that take tokens from the ring and, once it has read them, writes the new dense tokens into it;
// part j compresses the j-th block that consists of new tokens alone. Chosen: bitmaps or an importance say which channels are
// kept of keys or of values.
template <class T, int HeadDim, bool Chosen>
__device__ __forceinline__ void append_part(const AppendParams& p, const AppendedTokens<T>& tokens, int part,
                                            uint8_t* memory) {
    using Writer = BlockWriter<T, HeadDim>;
    const int slot = tokens.slot, head = tokens.head, which = tokens.which;
    const int before = tokens.before, length = tokens.length, due = tokens.due;
    if (part == 0 && which == 0 && head == 0 && threadIdx.x == 0) {
        if (p.new_lengths != nullptr) p.new_lengths[slot] = length;
        if (p.new_compressed != nullptr) p.new_compressed[slot] = due;
    }

    float* const factors =
        which == 0 ? factors_of<HeadDim>(p.key_factors, slot, static_cast<int>(p.by_head.value()), head) : nullptr;
    if (p.by_part.value() == 1 && tokens.compresses_first())
        compute_key_factors<T>(
            due, [&](int token) { return tokens.row(token); }, *reinterpret_cast<float(*)[HeadDim]>(memory), factors);
    Writer writer(*reinterpret_cast<typename Writer::Memory*>(memory));
    const auto compress = [&](int block) {
        const Blocks& blocks = p.blocks[which];
        const int token = block * block_tokens + writer.token();
        writer.load(tokens.row(token), p.aligned);
        Choice choice;
        if constexpr (Chosen) {
            const int heads = static_cast<int>(p.by_head.value());
            const int row = min(token - tokens.compressed, p.bitmap_tokens - 1);
            const int64_t rows = (static_cast<int64_t>(tokens.batch_row) * heads + head) * p.bitmap_tokens;
            const uint32_t* const bitmap = p.bitmap[which];
            choice = {bitmap != nullptr, bitmap == nullptr ? nullptr : bitmap + (rows + row) * Writer::words,
                      factors_of<HeadDim>(p.importance[which], slot, heads, head)};
        }
        writer.template compress<true>(choice, blocks.pattern, blocks.keep, blocks.fixed(slot, head, block),
                                       p.order[which], factors);
    };
    const int first_new = (before + block_tokens - 1) / block_tokens;  // block of new tokens alone
    const int end = due / block_tokens;
    int block = part > 0 ? first_new + part - 1 : tokens.compressed / block_tokens;
    for (const int stop = min(part > 0 ? block + 1 : first_new, end); block < stop; ++block) compress(block);
    if (part > 0) return;
    __syncthreads();
    const int first_dense = max(before, due);
    for (int i = threadIdx.x; i < (length - first_dense) * HeadDim; i += block_threads) {
        const int token = first_dense + i / HeadDim, channel = i % HeadDim;
        p.tail[which].row<T>(slot, head, token % p.tail_capacity)[channel] = tokens.row(token)[channel];
    }
}

}  // namespace mustafar::cuda
