#include "core/cuda_library.h"

#include <atomic>
#include <string>

#include "core/error.h"
#include "core/shared_library.h"

namespace mustafar {
namespace {

#if defined(_WIN32)
constexpr const char* file_name = "mustafar_cuda.dll";
#else
constexpr const char* file_name = "libmustafar_cuda.so";
#endif

// The library next to this one; or, since packages keep each in its own folder, the one that the caller has loaded or
// that the system finds by its name.
void* load_file() {
    try {
        return load_library(own_folder() + file_name);
    } catch (const Error& beside) {
        try {
            return load_library(file_name);
        } catch (const Error& by_name) {
            fail(MUSTAFAR_STATUS_UNSUPPORTED, "the CUDA back end could not be loaded: %s; %s", beside.what(),
                 by_name.what());
        }
    }
}

const Backend& load() {
    const auto table = reinterpret_cast<BackendFunction>(find_function(load_file(), cuda_backend_symbol));
    if (table == nullptr) fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s does not export %s", file_name, cuda_backend_symbol);
    const Backend* backend = table();
    if (backend == nullptr || backend->abi_version != MUSTAFAR_ABI_VERSION)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: expected ABI version %d, got %d", file_name, MUSTAFAR_ABI_VERSION,
             backend ? backend->abi_version : 0);
    return *backend;
}

}  // namespace

const Backend& cuda_backend() {
    static std::atomic<const Backend*> loaded{nullptr};
    const Backend* backend = loaded.load(std::memory_order_acquire);
    if (backend == nullptr) {
        backend = &load();  // two threads may both load: the loader returns the same library to both
        loaded.store(backend, std::memory_order_release);
    }
    return *backend;
}

}  // namespace mustafar
