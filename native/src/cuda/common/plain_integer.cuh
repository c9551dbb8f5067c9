// Integers in plain order: bytes of two's complement, or nibbles of sign and magnitude, the first in the low half of its byte.
#pragma once

#include <cstdint>

namespace mustafar::cuda {

struct PlainInteger {
    int bits;

    __device__ __forceinline__ uint32_t pack(int value) const {
        return bits == 8 ? static_cast<uint32_t>(value) & 0xffu : static_cast<uint32_t>(value < 0 ? 8 - value : value);
    }
    // Number `index` of those that start at `values`.
    __device__ __forceinline__ int unpack(const uint8_t* values, uint32_t index) const {
        if (bits == 8) return static_cast<int8_t>(values[index]);
        const int nibble = values[index / 2] >> index % 2 * 4 & 15;
        return nibble & 8 ? -(nibble & 7) : nibble;
    }
};

}  // namespace mustafar::cuda
