#include "core/cuda_library.h"

#include <dlfcn.h>

#include <atomic>
#include <string>

namespace mustafar {
namespace {

constexpr const char* file_name = "libmustafar_cuda.so";

// The folder of the shared object that holds this function, with its slash; empty if the loader does not know.
std::string own_folder() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return {};
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? std::string{} : path.substr(0, slash + 1);
}

const Backend& load() {
    const std::string path = own_folder() + file_name;
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* reason = dlerror();
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "the CUDA back end could not be loaded: %s", reason ? reason : path.c_str());
    }
    const auto table = reinterpret_cast<BackendFunction>(dlsym(library, cuda_backend_symbol));
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
