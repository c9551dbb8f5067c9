// Division by a number that is known at the launch, without dividing on the device (Granlund and Montgomery, "Division by
// invariant integers using multiplication", 1994).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mustafar::cuda {

class Divisor {
public:
    Divisor() : Divisor(1) {}
    // 1 ... 2^31
    explicit Divisor(uint32_t value) : value_(value) {
        while (uint64_t{1} << shift_ < value) ++shift_;
        multiplier_ = static_cast<uint32_t>((((uint64_t{1} << shift_) - value) << 32) / value + 1);
    }

    // Quotient of a number below 2^31; leaves the remainder in it.
    __device__ __forceinline__ uint32_t split(uint32_t& number) const {
        const uint32_t quotient = (static_cast<uint32_t>(uint64_t{number} * multiplier_ >> 32) + number) >> shift_;
        number -= quotient * value_;
        return quotient;
    }

    __host__ __device__ __forceinline__ uint32_t value() const { return value_; }

private:
    uint32_t value_, multiplier_, shift_ = 0;
};

}  // namespace mustafar::cuda
