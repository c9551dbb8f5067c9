#pragma once

#include <cstdint>

namespace mustafar::cuda {

// Bytes of one stage of a Ring (common/ring.cuh): stages start at multiples of 128, readers may look 16 bytes past a block.
constexpr uint32_t ring_stage_bytes(uint32_t block_bytes) {
    return (block_bytes + 16 + 127) & ~127u;
}

}  // namespace mustafar::cuda
