#include <dlfcn.h>

#include "core/error.h"
#include "core/shared_library.h"

namespace mustafar {

std::string own_folder() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return {};
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? std::string{} : path.substr(0, slash + 1);
}

void* load_library(const std::string& path) {
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* const reason = dlerror();
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s", reason ? reason : path.c_str());
    }
    return library;
}

void* find_function(void* library, const char* name) {
    return dlsym(library, name);
}

}  // namespace mustafar
