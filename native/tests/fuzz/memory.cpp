#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <random>

namespace mustafar_fuzz {

namespace {

// Random words, made once: a fuzzer must not spend its time on filling memory.
class Pattern {
public:
    explicit Pattern(bool small_numbers) : words_(2 * size_t{Memory::most_bytes} / sizeof(uint64_t)) {
        std::mt19937_64 random;
        // 0x3c..: about one in f16, small in f32 and bf16. Without it a good part of all floats is huge or NaN.
        for (uint64_t& word : words_)
            word = small_numbers ? (random() & 0x83ff83ff83ff83ffu) | 0x3c003c003c003c00u : random();
    }

    void copy(void* target, size_t bytes, uint64_t place) const {
        std::memcpy(target, words_.data() + place % (words_.size() / 2), bytes);
    }

private:
    std::vector<uint64_t> words_;
};

}  // namespace

void Memory::fill(void* buffer, size_t bytes, bool small_numbers) {
    static const Pattern small(true), any(false);
    (small_numbers ? small : any).copy(buffer, bytes, next());
}

void* Memory::nowhere() {
    static void* const page = [] {
        void* const address = mmap(nullptr, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (address == MAP_FAILED) std::abort();
        return address;
    }();
    return page;
}

}  // namespace mustafar_fuzz
