// The dense part of a sequence, 16 tokens at a time: the ring of recent tokens and the caller's fresh ones. Rows go from
// global memory straight into operand registers; tokens outside the range are never touched.
#pragma once

#include "cuda/attention/decoder.cuh"
#include "cuda/attention/sequence.cuh"

namespace mustafar::cuda {

// Tokens position ... position + count - 1 (count <= 16) of a KV head, token i in row (first + i) % capacity.
template <class T>
struct DenseChunk {
    const T* keys;
    const T* values;
    int64_t key_stride, value_stride;  // elements from one row to the next
    int position, count, first, capacity;

    __device__ __forceinline__ const T* key(int token) const { return keys + row(token) * key_stride; }
    __device__ __forceinline__ const T* value(int token) const { return values + row(token) * value_stride; }

private:
    __device__ __forceinline__ int row(int token) const {
        const int at = first + token;
        return at >= capacity ? at - capacity : at;
    }
};

// Copies what it needs of the parameters: through a pointer to one tensor or the other they would be read from memory.
template <class T>
__device__ __forceinline__ DenseChunk<T> dense_chunk(const AttentionParams& p, const Sequence& sequence, int head,
                                                     int index) {
    if (index < sequence.tail_chunks) {
        const int position = sequence.tail_first + index * chunk_tokens;
        return {p.tail_keys.row<const T>(sequence.slot, head, 0),
                p.tail_values.row<const T>(sequence.slot, head, 0),
                p.tail_keys.token_stride,
                p.tail_values.token_stride,
                position,
                min(chunk_tokens, sequence.length - sequence.fresh - position),
                position % p.tail_capacity,
                p.tail_capacity};
    }
    const int first = (index - sequence.tail_chunks) * chunk_tokens;
    return {p.fresh_keys.row<const T>(sequence.row, head, 0),
            p.fresh_values.row<const T>(sequence.row, head, 0),
            p.fresh_keys.token_stride,
            p.fresh_values.token_stride,
            sequence.length - sequence.fresh + first,
            min(chunk_tokens, sequence.fresh - first),
            first,
            INT_MAX};
}

// The rows of a chunk as operands. Keys and values are asked for at once, as early as may be: what is asked for later queues
// behind the blocks that the multiprocessor's warps are bringing.
template <class T, class D>
struct DenseRows {
    static constexpr int value_words = D::head_dim / 16;  // of 2 channels, an eighth of a row
    uint32_t key[2][D::part_words], value[4][value_words];

    // Without a branch between one row and the next, which would wait for the row before. Rows past the count are those of its last
    // token; nobody sees their scores.
    __device__ __forceinline__ void load(const D& decoder, const DenseChunk<T>& chunk, bool aligned) {
        if (aligned)
            load_rows(decoder, chunk, std::true_type{});
        else
            load_rows(decoder, chunk, std::false_type{});
    }

    template <class Query, int Tiles>
    __device__ __forceinline__ void scores(const D& decoder, const Query& query, float (&score)[Tiles][2][4]) const {
#pragma unroll
        for (int i = 0; i < D::steps; ++i) {
            const uint2 low = D::query_fragment(key[0], i, decoder.t), high = D::query_fragment(key[1], i, decoder.t);
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                const uint2 q = query(n, i);
                mma_16816<T>(score[n][0], low.x, high.x, low.y, high.y, q.x, q.y);
            }
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void sums(const D& decoder, const DenseChunk<T>& chunk,
                                         const uint32_t (&probability)[Tiles][4],
                                         float (&accumulator)[Tiles][D::value_tiles][4]) {
        // A weight of zero times what is not finite would be NaN.
#pragma unroll
        for (int m = 0; m < 4; ++m)
            if (token_of(decoder, m) >= chunk.count) clear(value[m]);
#pragma unroll
        for (int i = 0; i < D::value_tiles; ++i)
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
                mma_16816<T>(accumulator[n][i], permute(value[0][i], value[1][i], 0x5410),
                             permute(value[0][i], value[1][i], 0x7632), permute(value[2][i], value[3][i], 0x5410),
                             permute(value[2][i], value[3][i], 0x7632), probability[n][0], probability[n][1]);
    }

private:
    static __device__ __forceinline__ int token_of(const D& decoder, int m) {
        return 2 * decoder.t + (m & 1) + 8 * (m >> 1);
    }

    template <class Aligned>
    __device__ __forceinline__ void load_rows(const D& decoder, const DenseChunk<T>& chunk, Aligned) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
            D::load_part(key[r], chunk.key(min(8 * r + decoder.g, chunk.count - 1)), decoder.t, Aligned::value);
#pragma unroll
        for (int m = 0; m < 4; ++m)
            load_row(value[m], chunk.value(min(token_of(decoder, m), chunk.count - 1)) + 2 * value_words * decoder.g,
                     Aligned::value);
    }
};

}  // namespace mustafar::cuda
