// Reading blocks in plain order: any dtype, head_dim and layout.
#pragma once

#include "cuda/common/blocks.cuh"
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
    const T* values;
    uint32_t capacity;  // values in the block; a bitmap that says more is not followed past it

    __device__ __forceinline__ PlainBlock(const Blocks& blocks, int sequence, int head, uint32_t block, int lane) {
        constexpr int bitmap = 128 * Words;
        uint32_t bytes;
        const uint8_t* const address = blocks.any(sequence, head, block, bitmap, bytes);
        values = reinterpret_cast<const T*>(address + bitmap);
        capacity = bytes / sizeof(T);
        uint32_t count = 0;
#pragma unroll
        for (int j = 0; j < Words; ++j) {
            row[j] = reinterpret_cast<const uint32_t*>(address)[lane * Words + j];
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

    __device__ __forceinline__ float value(uint32_t index) const {
        return index < capacity ? widened(values[index]) : 0.0f;
    }

    // This lane's token times a dense vector.
    __device__ __forceinline__ float dot(const float* vector) const {
        float sum = 0.0f;
        uint32_t index = start;
#pragma unroll
        for (int j = 0; j < Words; ++j)
            for (uint32_t rest = row[j]; rest != 0; rest &= rest - 1)
                sum = fmaf(vector[32 * j + __ffs(static_cast<int>(rest)) - 1], value(index++), sum);
        return sum;
    }

    // Calls use(token, channel group j, value) for channel 32j + lane of every token, absent channels as zeros.
    template <class Use>
    __device__ __forceinline__ void for_each_token(int lane, Use&& use) const {
        for (int token = 0; token < block_tokens; ++token) {
            uint32_t index = __shfl_sync(full_warp, start, token);
#pragma unroll
            for (int j = 0; j < Words; ++j) {
                const uint32_t word = __shfl_sync(full_warp, row[j], token);
                const bool kept = word >> lane & 1;
                use(token, j, kept ? value(index + __popc(word & ((1u << lane) - 1))) : 0.0f);
                index += __popc(word);
            }
        }
    }
};

}  // namespace mustafar::cuda
