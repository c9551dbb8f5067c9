// Memory that is handed to the library: every buffer ends where the ABI says that it ends, so that the address sanitizer
// sees the first byte outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace mustafar_fuzz {

// Wide enough for any product of four numbers that an argument struct can hold.
__extension__ using wide = __int128;

class Memory {
public:
    // Larger buffers are not made. A call that needs one may be valid and can't be tested ...
    static constexpr wide most_bytes = wide{1} << 20;
    // ... unless it needs more than any process can address, which the library must refuse.
    static constexpr wide address_space = wide{1} << 62;

    explicit Memory(uint64_t seed) : state_(seed | 1) {}

    // A buffer with pseudo-random content. One that could not exist is an address at which nothing can be read.
    template <class T>
    T* make(wide count, bool small_numbers = false) {
        const wide bytes = count * wide{sizeof(T)};
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

    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }

private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(char* buffer) const { ::operator delete(buffer, alignment); }
    };

    void* allocate(size_t bytes) {
        buffers_.emplace_back(static_cast<char*>(::operator new(bytes, alignment)));
        return buffers_.back().get();
    }

    void fill(void* buffer, size_t bytes, bool small_numbers);
    static void* nowhere();

    std::vector<std::unique_ptr<char, Free>> buffers_;
    uint64_t state_;
    bool possible_ = true;
};

}  // namespace mustafar_fuzz
