// Counters by which the last thread block of a tile knows that it is the last.
#pragma once

#include "cuda/common/launch.h"

namespace mustafar::cuda {

// `count` counters for calls that use this workspace, in the library's own memory on the current device: zero, and zero
// again after each call. Calls that may run at the same time have workspaces of their own, and so counters of their own.
// Null where count is too large or more workspaces have been seen than there are counters for.
uint32_t* arrival_counters(const DeviceScope& scope, const void* workspace, int64_t count);

}  // namespace mustafar::cuda
