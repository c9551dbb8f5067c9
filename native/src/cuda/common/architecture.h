#pragma once

namespace mustafar::cuda {

// The architecture, 90 for 9.0, that the kernels were compiled for which run on the current device: __CUDA_ARCH__ / 10 in
// them. Older than the device where the library has no machine code for it and the driver compiles PTX.
int kernel_architecture();

}  // namespace mustafar::cuda
