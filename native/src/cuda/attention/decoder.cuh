// Unstructured blocks of native values.
#pragma once

#include "cuda/attention/unstructured_decoder.cuh"

namespace mustafar::cuda {

// Values in the tensor's type, one run after another.
template <class T>
struct NativeRuns {
    using Multiplied = T;
    static constexpr bool integers = false;
    static constexpr int value_bytes = 2;
    const uint32_t token_bytes;

    __device__ __forceinline__ explicit NativeRuns(const Blocks& blocks) : token_bytes(2 * blocks.keep) {}

    template <int Tokens>
    __device__ __forceinline__ uint32_t start(int token) const {
        return token * token_bytes;
    }
    __device__ __forceinline__ uint2 operand(uint2 values, int) const { return values; }
};

template <class T, int HeadDim>
using Decoder = UnstructuredDecoder<NativeRuns<T>, HeadDim>;

}  // namespace mustafar::cuda
