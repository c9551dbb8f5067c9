// Products with integers, in the quad orders (core/format.h) or packed in plain order, one table for each instruction set that has kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/block_reader.h"

namespace mustafar {

// Consecutive whole blocks of one KV head; keys or values.
struct QuadBlocks {
    static constexpr int most = 16;  // 512 tokens: sums of that many products fit 32 bits
    // Blocks that are expanded to 8-bit values with all channels are as many as fit the first-level cache.
    static constexpr int room_bytes = 32 * 1024;
    static constexpr int expanded_bytes(int head_dim) {
        return block_tokens * static_cast<int>(divide_up(head_dim, 64)) * 64;
    }
    static constexpr int most_expanded(int head_dim) {
        return std::min(room_bytes / expanded_bytes(head_dim), most / 2);
    }

    Block blocks[most];
    const char* ahead[most];  // what to prefetch while a block is read: as many bytes as it has
    int count;
    bool packed;  // in plain order behind a bitmap, and followed by 64 readable bytes; else all channels in quad order
    int bits;     // 8 or 4
    int head_dim;
    char* room;  // for packed blocks when they are expanded: room_bytes, 64-byte aligned
};

// Queries and weights are numbers of 15 bits, or with `wide` of 22, relative to the largest of a row: the products with
// integers are exact then. So wide numbers are as accurate as f32, the others far more accurate than f16 and bf16.
struct QuadKernels {
    // Bytes of a prepared query, a multiple of 64.
    int64_t (*query_bytes)(int head_dim);
    void (*prepare_query)(const float* row, int head_dim, bool wide, void* prepared);
    // scores[r * stride + t] = query row r . token t, for all tokens of all blocks
    void (*scores)(const QuadBlocks& blocks, bool wide, const void* prepared, int rows, float* scores, int64_t stride);
    // sums[r * sums_stride + channel] += weights[r * stride + t] * token first + t, t = 0 ... tokens - 1. Returns how many rows were
    // added: it stops where a weight times its token's scale is not finite, or a row is too small to be scaled.
    int (*sum)(const QuadBlocks& blocks, bool wide, int first, int tokens, const float* weights, int64_t stride,
               int rows, float* sums, int64_t sums_stride);
};

// The table for a context's variant, or null if there is none.
const QuadKernels* quad_kernels(int32_t variant);

#if defined(__x86_64__)
const QuadKernels& avx512_quad_kernels();
const QuadKernels& avx512vnni_quad_kernels();
const QuadKernels& avx2_quad_kernels();
#elif defined(__aarch64__)
const QuadKernels& neon_quad_kernels();
#endif

}  // namespace mustafar
