// Whole pages of memory, followed by one at which every access is a fault.
#pragma once

#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdio>
#include <cstdlib>

class GuardedPages {
public:
    // At least so many bytes.
    explicit GuardedPages(size_t bytes) : size_((bytes + page - 1) / page * page) {
#if defined(_WIN32)
        start_ = VirtualAlloc(nullptr, size_ + page, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
        DWORD before;
        const bool made = start_ != nullptr && VirtualProtect(end(), page, PAGE_NOACCESS, &before) != 0;
#else
        start_ = mmap(nullptr, size_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        const bool made = start_ != MAP_FAILED && mprotect(end(), page, PROT_NONE) == 0;
#endif
        if (!made) {
            std::fprintf(stderr, "%zu bytes of guarded memory can't be had\n", bytes);
            std::exit(1);
        }
    }
    ~GuardedPages() {
#if defined(_WIN32)
        VirtualFree(start_, 0, MEM_RELEASE);
#else
        munmap(start_, size_ + page);
#endif
    }
    GuardedPages(const GuardedPages&) = delete;
    GuardedPages& operator=(const GuardedPages&) = delete;

    char* end() const {
        return static_cast<char*>(start_) + size_;
    }

private:
    static constexpr size_t page = 65536;  // the largest that processors have
    size_t size_;
    void* start_;
};
