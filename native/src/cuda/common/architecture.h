#pragma once

namespace mustafar::cuda {

// The architecture, 90 for 9.0, that the kernels were compiled for which run on the current device: __CUDA_ARCH__ / 10 in
// them. Older than the device where the library has no machine code for it and the driver compiles PTX.
int kernel_architecture();

// Clusters are of 1, 2, 4, 8 or 16 thread blocks.
constexpr int cluster_sizes = 5;

// How many clusters of so many thread blocks the current device runs at the same time where each thread block takes the shared memory
// of a multiprocessor; 0 where it has no such clusters. shared_bytes: the most that a thread block may have.
int resident_clusters(int size, int shared_bytes);

}  // namespace mustafar::cuda
