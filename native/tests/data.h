// Numbers, memory and comparisons of the native tests.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "guarded_pages.h"
#include "mustafar/mustafar.h"

// Bytes filled with ones: NaN in every dtype. They end, but for alignment, where no more memory can be read.
class Memory {
public:
    explicit Memory(int64_t bytes, size_t alignment = 16)
        : bytes_(static_cast<size_t>(bytes)), pages_(bytes_ + alignment),
          data_(pages_.end() - (bytes_ + alignment - 1) / alignment * alignment) {
        std::memset(data_, 0xff, bytes_);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    template <class T = void>
    T* as() const {
        return static_cast<T*>(data_);
    }
    bool operator==(const Memory& other) const { return std::memcmp(data_, other.data_, bytes_) == 0; }

private:
    size_t bytes_;
    GuardedPages pages_;
    void* data_;
};

inline int element_bytes(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? 4 : 2;
}

inline float f16_to_f32(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude =
        exponent == 31  ? fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity()
         : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                        : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

inline float load(const void* data, int64_t index, int32_t dtype) {
    if (dtype == MUSTAFAR_DTYPE_F32) return static_cast<const float*>(data)[index];
    const uint16_t bits = static_cast<const uint16_t*>(data)[index];
    return dtype == MUSTAFAR_DTYPE_F16 ? f16_to_f32(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
}

// Truncates: any number of the dtype will do. Halves are made of numbers in their normal range.
inline void store(void* data, int64_t index, int32_t dtype, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (dtype == MUSTAFAR_DTYPE_F32)
        static_cast<float*>(data)[index] = value;
    else
        static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(
            dtype == MUSTAFAR_DTYPE_BF16 ? bits >> 16
                                         : (bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - 0x38000000u) >> 13);
}

// The same numbers in every run.
inline uint32_t random_bits() {
    static std::mt19937 engine;
    return static_cast<uint32_t>(engine());
}

// Infinities and NaNs must be the same ones; tolerance is for finite numbers.
inline bool agree(double expected, double actual, double tolerance) {
    if (std::isnan(expected) || std::isnan(actual)) return std::isnan(expected) && std::isnan(actual);
    if (std::isinf(expected) || std::isinf(actual)) return expected == actual;
    return std::abs(expected - actual) <= tolerance;
}

inline mustafar_context context_of(int32_t variant) {
    return {MUSTAFAR_DEVICE_CPU, 0, 1, variant, nullptr};
}
