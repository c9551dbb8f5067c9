// The dense part of a sequence, 32 tokens at a time: the ring of recent tokens and the caller's fresh ones. Rows go from
// global memory straight into operand registers; tokens outside the range are never touched.
#pragma once

#include "cuda/attention/decoder.cuh"
#include "cuda/attention/sequence.cuh"

namespace mustafar::cuda {

// Tokens position ... position + count - 1 (count <= 32), token i in row (first + i) % capacity.
struct DenseChunk {
    const Dense* keys;
    const Dense* values;
    int sequence;  // of the two tensors
    int position, count, first, capacity;

    template <class T>
    __device__ __forceinline__ const T* row(const Dense& dense, int head, int token) const {
        int at = first + token;
        if (at >= capacity) at -= capacity;
        return dense.row<const T>(sequence, head, at);
    }
};

__device__ __forceinline__ DenseChunk dense_chunk(const AttentionParams& p, const Sequence& sequence, int index) {
    if (index < sequence.tail_chunks) {
        const int position = sequence.tail_first + index * chunk_tokens;
        return {&p.tail_keys,
                &p.tail_values,
                sequence.slot,
                position,
                min(chunk_tokens, sequence.length - sequence.fresh - position),
                position % p.tail_capacity,
                p.tail_capacity};
    }
    const int first = (index - sequence.tail_chunks) * chunk_tokens;
    return {&p.fresh_keys,
            &p.fresh_values,
            sequence.row,
            sequence.length - sequence.fresh + first,
            min(chunk_tokens, sequence.fresh - first),
            first,
            INT_MAX};
}

template <class T, class D, int Tiles>
__device__ __forceinline__ void dense_keys(const D& decoder, const DenseChunk& chunk, int head, bool aligned,
                                           const QueryFragments<D::steps, Tiles>& query, float (&score)[Tiles][2][4]) {
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        uint32_t row[2][D::part_words];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int token = 16 * a + 8 * r + decoder.g;
            clear(row[r]);
            if (token < chunk.count) D::load_part(row[r], chunk.row<T>(*chunk.keys, head, token), decoder.t, aligned);
        }
#pragma unroll
        for (int i = 0; i < D::steps; ++i) {
            const uint2 low = D::query_fragment(row[0], i, decoder.t), high = D::query_fragment(row[1], i, decoder.t);
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                const uint2 q = query(n, i);
                mma_16816<T>(score[n][a], low.x, high.x, low.y, high.y, q.x, q.y);
            }
        }
    }
}

template <class T, class D, int Tiles>
__device__ __forceinline__ void dense_values(const D& decoder, const DenseChunk& chunk, int head, bool aligned,
                                             const uint32_t (&probability)[Tiles][4],
                                             float (&accumulator)[Tiles][D::value_tiles][4]) {
    constexpr int words = D::head_dim / 16;  // of 2 channels, an eighth of a row
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        uint32_t row[4][words];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const int token = 16 * a + 2 * decoder.t + (m & 1) + 8 * (m >> 1);
            clear(row[m]);
            if (token < chunk.count)
                load_row(row[m], chunk.row<T>(*chunk.values, head, token) + 2 * words * decoder.g, aligned);
        }
#pragma unroll
        for (int i = 0; i < D::value_tiles; ++i)
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
                mma_16816<T>(accumulator[n][i], permute(row[0][i], row[1][i], 0x5410),
                             permute(row[0][i], row[1][i], 0x7632), permute(row[2][i], row[3][i], 0x5410),
                             permute(row[2][i], row[3][i], 0x7632), probability[n][2 * a], probability[n][2 * a + 1]);
    }
}

}  // namespace mustafar::cuda
