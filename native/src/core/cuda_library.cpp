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

void* load_file(const std::string& path) {
    try {
        return load_library(path);
    } catch (const Error& reason) {
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "the CUDA back end could not be loaded: %s", reason.what());
    }
}

const Backend& load() {
    const std::string path = own_folder() + file_name;
    const auto table = reinterpret_cast<BackendFunction>(find_function(load_file(path), cuda_backend_symbol));
    if (table == nullptr) fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s does not export %s", path.c_str(), cuda_backend_symbol);
    const Backend* backend = table();
    if (backend == nullptr || backend->abi_version != MUSTAFAR_ABI_VERSION)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: expected ABI version %d, got %d", path.c_str(), MUSTAFAR_ABI_VERSION,
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
