#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace mustafar_fuzz {

void Memory::fill(void* buffer, size_t bytes, bool small_numbers) {
    char* const target = static_cast<char*>(buffer);
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t word = next();
        // 0x3c..: about one in f16, small in f32 and bf16. Without it a good part of all floats is huge or NaN.
        if (small_numbers) word = (word & 0x83ff83ff83ff83ffu) | 0x3c003c003c003c00u;
        std::memcpy(target + i, &word, bytes - i < sizeof word ? bytes - i : sizeof word);
    }
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
