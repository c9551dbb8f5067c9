// What every exported function does around its call of a back end.
#pragma once

#include "core/backend.h"
#include "core/cuda_library.h"
#include "core/error.h"

namespace mustafar {

ErrorText& last_error();  // of this thread

inline const Backend& backend(const mustafar_context& context) {
    return context.device == MUSTAFAR_DEVICE_CUDA ? cuda_backend() : cpu_backend();
}

// A back end that reports failure has written its text; pass both to guarded().
inline void pass_on(int32_t status, const ErrorText& text) {
    if (status != MUSTAFAR_STATUS_OK) throw Error(static_cast<mustafar_status>(status), text);
}

template <class Call>
int32_t exported(Call&& call) noexcept {
    return guarded(last_error(), call);
}

}  // namespace mustafar
