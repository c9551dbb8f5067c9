// A warp's own ring of block copies from global to shared memory: iteration c brings a run of key blocks, one or two that lie side
// by side, and the value blocks of the same tokens. On sm_90 and later each run is one bulk copy that completes on an mbarrier; before that, cp.async of 16-byte pieces.
// A warp never waits for another one.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/common/ring_layout.h"

namespace mustafar::cuda {

// The runs of `span` blocks a warp walks: first, first + stride, ... (`count` of them). Run r has the blocks from span * r on,
// as far as they are before `end`.
struct Walk {
    int slot, head;
    uint32_t first, stride, span;
    int count;
    uint32_t end;

    __device__ __forceinline__ uint32_t block(int c) const { return (first + c * stride) * span; }
};

// MaxSpan: what walk.span is at most. No run may go over a page's end.
template <int MaxSpan>
class Ring {
public:
    // `memory`: depth * (key stage + value stage) bytes; `barriers`: 2 * depth of 8 bytes.
    __device__ __forceinline__ Ring(const Blocks& keys, const Blocks& values, const Walk& walk, uint32_t memory,
                                    uint32_t barriers, int depth, int lane)
        : keys_(keys), values_(values), walk_(walk), memory_(memory), barriers_(barriers), depth_(depth), lane_(lane),
          key_stage_(ring_stage_bytes(span() * keys.block_bytes)),
          stage_(key_stage_ + ring_stage_bytes(span() * values.block_bytes)) {
#if __CUDA_ARCH__ >= 900
        if (lane < 2 * depth) start_barrier(barriers + 8 * lane);
        __syncwarp();
#endif
    }

    // Finds the blocks of the first iterations; `walk.count` need not be known yet. Page numbers and the addresses of slabs are asked for
    // at once: of up to 32 slabs each lane reads one, and hands it to those whose pages lie there.
    // table_blocks: what both page tables have entries for.
    __device__ __forceinline__ void locate_first(uint32_t table_blocks) {
        uint32_t key = walk_.block(lane_), value = key;
        const bool known = key < table_blocks;
        uint32_t key_page = load_if(known, keys_.page_entry(walk_.slot, key));
        uint32_t value_page = load_if(known, values_.page_entry(walk_.slot, value));
        void* const key_slab = load_if(lane_ < keys_.slab_count, keys_.slabs + lane_);
        void* const value_slab = load_if(lane_ < values_.slab_count, values_.slabs + lane_);
        key_address_ = keys_.in_page(slab_page(keys_, key_slab, key_page), walk_.head, key);
        value_address_ = values_.in_page(slab_page(values_, value_slab, value_page), walk_.head, value);
    }

    // Likewise for a walk that is known, iteration `c` and the 31 after it.
    __device__ __forceinline__ void locate(int c) {
        // Lane l keeps the addresses of iterations l, 32 + l, ...: page table entries are read 32 at a time, long before use.
        if (c + lane_ >= walk_.count) return;
        const uint32_t block = walk_.block(c + lane_);
        key_address_ = keys_.fixed(walk_.slot, walk_.head, block);
        value_address_ = values_.fixed(walk_.slot, walk_.head, block);
    }

    // Starts the first copies.
    __device__ __forceinline__ void start() {
#pragma unroll 1
        for (int c = 0; c < depth_; ++c) {
            copy_key(c, c);
            copy_value(c, c);
        }
    }

    // Blocks of iteration c.
    __device__ __forceinline__ uint32_t blocks(int c) const {
        return MaxSpan == 1 ? 1 : min(walk_.span, walk_.end - walk_.block(c));
    }

    // Waits for the key (value) blocks of the current iteration; returns their shared-memory address. Where the keys are not released
    // before the values are waited for, that has to be said.
    __device__ __forceinline__ uint32_t key() {
        wait(2 * slot_, 2 * depth_ - 1);
        return memory_ + slot_ * stage_;
    }
    __device__ __forceinline__ uint32_t value(bool keys_released = true) {
        wait(2 * slot_ + 1, 2 * depth_ - (keys_released ? 1 : 2));
        return memory_ + slot_ * stage_ + key_stage_;
    }

    // The warp has read the key blocks of iteration c: their place is filled with those of iteration c + depth.
    __device__ __forceinline__ void release_key(int c) {
        __syncwarp();
        copy_key(c + depth_, slot_);
    }
    // Likewise; moves on to the next iteration.
    __device__ __forceinline__ void release_value(int c) {
        __syncwarp();
        copy_value(c + depth_, slot_);
        if ((c + depth_ & 31) == 31) locate(c + depth_ + 1);
        if (++slot_ == depth_) {
            slot_ = 0;
            parity_ ^= 1;
        }
    }

private:
    // own_slab: the address of the slab of the lane's number.
    static __device__ __forceinline__ uint8_t* slab_page(const Blocks& blocks, void* own_slab, uint32_t page) {
        const uint32_t slab = blocks.slab_of(page);
        const auto handed = __shfl_sync(full_warp, reinterpret_cast<unsigned long long>(own_slab), slab & 31);
        return blocks.in_slab(slab < 32 ? reinterpret_cast<void*>(handed) : blocks.slabs[slab], page);
    }
    __device__ __forceinline__ uint32_t span() const {
        return MaxSpan == 1 ? 1 : walk_.span;
    }

    __device__ __forceinline__ void copy_key(int c, int slot) {
        copy(c, key_address_, memory_ + slot * stage_, 2 * slot, keys_.block_bytes);
    }
    __device__ __forceinline__ void copy_value(int c, int slot) {
        copy(c, value_address_, memory_ + slot * stage_ + key_stage_, 2 * slot + 1, values_.block_bytes);
    }

#if __CUDA_ARCH__ >= 900
    __device__ __forceinline__ void copy(int c, const uint8_t* source, uint32_t target, int barrier,
                                         uint32_t block_bytes) {
        if (lane_ == (c & 31) && c < walk_.count) {
            const uint32_t address = barriers_ + 8 * barrier, bytes = blocks(c) * block_bytes;
            expect_bytes(address, bytes);
            // So that blocks do not drive code, tables and queries out of the cache.
            const uint64_t policy = evict_first_policy();
            asm volatile(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
                "[%3], "
                "%4;" ::"r"(target),
                "l"(source), "r"(bytes), "r"(address), "l"(policy)
                : "memory");
        }
    }
    __device__ __forceinline__ void wait(int barrier, int) {
        wait_for_bytes(barriers_ + 8 * barrier, parity_);
    }
#else
    __device__ __forceinline__ void copy(int c, const uint8_t* source, uint32_t target, int, uint32_t block_bytes) {
        const auto address = __shfl_sync(full_warp, reinterpret_cast<unsigned long long>(source), c & 31);
        if (c < walk_.count)
            for (uint32_t i = 16 * lane_; i < blocks(c) * block_bytes; i += 512)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target + i), "l"(address + i)
                             : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    // All but the newest `pending` copies have to be there; that number is an operand of the instruction.
    __device__ __forceinline__ void wait(int, int pending) {
        switch (pending) {
            case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
            case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
            case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
            case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
            case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
            default: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
        }
        __syncwarp();
    }
#endif

    const Blocks& keys_;
    const Blocks& values_;
    const Walk& walk_;
    const uint32_t memory_, barriers_;
    const int depth_, lane_;
    const uint32_t key_stage_, stage_;
    const uint8_t* key_address_ = nullptr;
    const uint8_t* value_address_ = nullptr;
    int slot_ = 0;
    uint32_t parity_ = 0;
};

}  // namespace mustafar::cuda
