// Reading blocks in plain order: any dtype, head_dim and layout.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/common/plain_integer.cuh"
#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

template <class T>
__device__ __forceinline__ float widened(T value) {
    return static_cast<float>(value);
}

// One block as a warp holds it: lane = token. Words: bitmap words of a token.
template <class T, int Words>
struct PlainBlock {
    uint32_t row[Words];  // bitmap of this lane's token
    uint32_t start;       // its first value
    float scale;          // of its values; 1 where they are native
    const uint8_t* values;
    uint32_t capacity;  // values in the block; a bitmap that says more is not followed past it
    int bits;           // of an integer; 0: native values

    __device__ __forceinline__ PlainBlock(const Blocks& blocks, int head_dim, int sequence, int head, uint32_t block,
                                          int lane)
        : bits(blocks.value_bits == 8 * sizeof(T) ? 0 : blocks.value_bits) {
        const bool all = keeps_all(blocks.pattern);
        const int bitmap = all ? 0 : 128 * Words, scale_bytes = bits == 0 ? 0 : 2 * block_tokens;
        uint32_t bytes;
        const uint8_t* const address = blocks.any(sequence, head, block, bitmap, bytes);
        const uint32_t room = bytes > scale_bytes ? bytes - scale_bytes : 0;
        values = address + bitmap;
        capacity = room * 8 / blocks.value_bits;
        scale = bits == 0 ? 1.0f : __half2float(reinterpret_cast<const __half*>(values + room)[lane]);
        uint32_t count = 0;
#pragma unroll
        for (int j = 0; j < Words; ++j) {
            const int channels = min(head_dim - 32 * j, 32);
            row[j] = all ? ~0u >> (32 - channels) : reinterpret_cast<const uint32_t*>(address)[lane * Words + j];
            count += __popc(row[j]);
        }
        uint32_t inclusive = count;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes <<= 1) {
            const uint32_t below = __shfl_up_sync(full_warp, inclusive, lanes);
            if (lane >= lanes) inclusive += below;
        }
        start = inclusive - count;
    }

    // In units of the token's scale.
    __device__ __forceinline__ float value(uint32_t index) const {
        if (index >= capacity) return 0.0f;
        if (bits != 0) return static_cast<float>(PlainInteger{bits}.unpack(values, index));
        return widened(reinterpret_cast<const T*>(values)[index]);
    }

    // This lane's token times a dense vector.
    __device__ __forceinline__ float dot(const float* vector) const {
        float sum = 0.0f;
        uint32_t index = start;
#pragma unroll
        for (int j = 0; j < Words; ++j)
            for (uint32_t rest = row[j]; rest != 0; rest &= rest - 1)
                sum = fmaf(vector[32 * j + __ffs(static_cast<int>(rest)) - 1], value(index++), sum);
        return sum * scale;
    }

    // Calls use(token, channel group j, value) for channel 32j + lane of every token, absent channels as zeros.
    template <class Use>
    __device__ __forceinline__ void for_each_token(int lane, Use&& use) const {
        for (int token = 0; token < block_tokens; ++token) {
            uint32_t index = __shfl_sync(full_warp, start, token);
            const float token_scale = __shfl_sync(full_warp, scale, token);
#pragma unroll
            for (int j = 0; j < Words; ++j) {
                const uint32_t word = __shfl_sync(full_warp, row[j], token);
                const bool kept = word >> lane & 1;
                use(token, j, kept ? value(index + __popc(word & ((1u << lane) - 1))) * token_scale : 0.0f);
                index += __popc(word);
            }
        }
    }
};

}  // namespace mustafar::cuda
