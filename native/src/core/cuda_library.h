// Loads libmustafar_cuda on demand.
#pragma once

#include "core/backend.h"

namespace mustafar {

// The CUDA back end, from the library file next to this one or found by its name. Throws Error with what was tried
// and why it failed; a later call tries again.
const Backend& cuda_backend();

}  // namespace mustafar
