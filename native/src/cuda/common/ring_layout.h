#pragma once

#include <cstdint>

namespace mustafar::cuda {

constexpr int max_ring_depth = 3;

// Bytes of the key or value blocks of one stage of a Ring (common/ring.cuh): they start at multiples of 128, readers may look
// 16 bytes past the last.
constexpr uint32_t ring_stage_bytes(uint32_t bytes) {
    return (bytes + 16 + 127) & ~127u;
}

}  // namespace mustafar::cuda
