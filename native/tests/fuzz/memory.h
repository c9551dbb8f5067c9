// Memory that is handed to the library: every buffer ends where the ABI says that it ends, so that the address sanitizer
// sees the first byte outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace mustafar_fuzz {

__extension__ using wide = __int128;

// Products that no process can address are all the same: hopeless.
constexpr wide hopeless = wide{1} << 100;
inline wide times(wide a, wide b) {
    wide product;
    if (__builtin_mul_overflow(a, b, &product)) return hopeless;
    return product > hopeless ? hopeless : product < -hopeless ? -hopeless : product;
}

class Memory {
public:
    // Larger buffers are not made. A call that needs one may be valid and can't be tested ...
    static constexpr int64_t most_bytes = int64_t{1} << 17;
    // ... unless it needs more than any process can address, which the library must refuse.
    static constexpr wide address_space = wide{1} << 62;

    explicit Memory(uint64_t seed) : state_(seed | 1) {}

    // A buffer with pseudo-random content. One that could not exist is an address at which nothing can be read.
    template <class T>
    T* make(wide count, bool small_numbers = false) {
        const wide bytes = times(count, sizeof(T));
        if (bytes <= 0) return static_cast<T*>(allocate(0));
        if (bytes > address_space) return static_cast<T*>(nowhere());
        if (bytes > most_bytes) {
            possible_ = false;
            return static_cast<T*>(nowhere());
        }
        T* const buffer = static_cast<T*>(allocate(static_cast<size_t>(bytes)));
        fill(buffer, static_cast<size_t>(bytes), small_numbers);
        return buffer;
    }

    // Whether everything asked for is there, or is such that the library must refuse it.
    bool possible() const { return possible_; }

private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(char* buffer) const { ::operator delete(buffer, alignment); }
    };

    void* allocate(size_t bytes) {
        buffers_.emplace_back(static_cast<char*>(::operator new(bytes, alignment)));
        return buffers_.back().get();
    }

    uint64_t next() {  // xorshift
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        return state_ ^= state_ << 17;
    }

    void fill(void* buffer, size_t bytes, bool small_numbers);
    static void* nowhere();

    std::vector<std::unique_ptr<char, Free>> buffers_;
    uint64_t state_;
    bool possible_ = true;
};

}  // namespace mustafar_fuzz
