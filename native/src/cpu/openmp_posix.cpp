#include <dlfcn.h>
#if defined(__linux__)
#include <link.h>

#include <cstring>
#endif

#include <atomic>

#include "cpu/openmp.h"

namespace mustafar {
namespace {

// The entry that libgomp defines and that LLVM's and Intel's runtimes provide as well.
using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp{nullptr};

void region(void (*call)(void*), void* data, int threads) {
    gomp.load(std::memory_order_relaxed)(call, data, static_cast<unsigned>(threads), 0);
}

#if defined(__linux__)
int find_in(dl_phdr_info* info, size_t, void* result) {
    const char* path = info->dlpi_name;
    if (path == nullptr) return 0;
    const char* slash = std::strrchr(path, '/');
    const char* name = slash ? slash + 1 : path;
    if (std::strncmp(name, "libgomp", 7) != 0 && std::strncmp(name, "libomp", 6) != 0 &&
        std::strncmp(name, "libiomp", 7) != 0)
        return 0;
    void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) return 0;
    const auto found = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
    if (found == nullptr) {
        dlclose(library);
        return 0;
    }
    *static_cast<GompParallel*>(result) = found;
    return 1;
}
#endif

GompParallel find() {
#if defined(__linux__)
    // Not dlsym(RTLD_DEFAULT): .NET loads libraries without making their symbols global.
    GompParallel found = nullptr;
    dl_iterate_phdr(find_in, &found);
    return found;
#else
    return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

}  // namespace

ParallelRegion find_openmp() {
    const GompParallel found = find();
    if (found == nullptr) return nullptr;
    gomp.store(found, std::memory_order_relaxed);  // visible to all threads that run `region`
    return region;
}

}  // namespace mustafar
