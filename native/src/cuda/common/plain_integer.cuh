// Integers in plain order: bytes of two's complement, or nibbles of sign and magnitude, the first in the low half of its byte.
#pragma once

#include "cuda/common/integers.cuh"

namespace mustafar::cuda {

struct PlainInteger {
    int bits;

    // byte: a SignedByte{bits}.
    __device__ __forceinline__ uint32_t pack(uint32_t byte) const {
        return bits == 8 ? static_cast<uint32_t>(SignedByte{8}.decode(byte)) & 0xffu : byte;
    }
    // Number `index` of those that start at `values`.
    __device__ __forceinline__ int unpack(const uint8_t* values, uint32_t index) const {
        return bits == 8 ? static_cast<int8_t>(values[index])
                         : SignedByte{4}.decode(values[index / 2] >> index % 2 * 4 & 15);
    }
};

}  // namespace mustafar::cuda
