// The instructions that have no intrinsic. Names follow PTX.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace mustafar::cuda {

constexpr unsigned full_warp = 0xffffffffu;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint32_t load_shared_u8(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

__device__ __forceinline__ uint32_t load_shared_u16(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

__device__ __forceinline__ uint32_t load_shared_u32(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

__device__ __forceinline__ float2 load_shared_f32x2(uint32_t address) {
    float2 value;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address));
    return value;
}

__device__ __forceinline__ float4 load_shared_f32x4(uint32_t address) {
    float4 value;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(address));
    return value;
}

__device__ __forceinline__ uint4 load_shared_u128(uint32_t address) {
    uint4 value;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address));
    return value;
}

__device__ __forceinline__ uint2 load_shared_u64(uint32_t address) {
    uint2 value;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address));
    return value;
}

// If `condition` is not 0, writes the low bytes of a value to shared memory and steps on. Without a branch or a selection.
template <class Value>
__device__ __forceinline__ void append_shared(uint32_t& address, uint32_t condition, uint32_t value) {
    static_assert(sizeof(Value) <= 2);
    if constexpr (sizeof(Value) == 2)
        asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %1, 0;\n@p st.shared.u16 [%0], %2;\n@p add.u32 %0, %0, 2;\n}"
                     : "+r"(address)
                     : "r"(condition), "r"(value)
                     : "memory");
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %1, 0;\n@p st.shared.u8 [%0], %2;\n@p add.u32 %0, %0, 1;\n}"
                     : "+r"(address)
                     : "r"(condition), "r"(value)
                     : "memory");
}

// A value plus that of the lane so many further down, if there is one.
__device__ __forceinline__ uint32_t plus_lower_lane(uint32_t value, int lanes) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b32 v;\nshfl.sync.up.b32 v|p, %0, %1, 0, 0xffffffff;\n@p add.u32 %0, %0, v;\n}"
        : "+r"(value)
        : "r"(lanes));
    return value;
}

// Byte permutation by the four low nibbles of the selector, whose upper half is of no interest (unlike __byte_perm, which
// the compiler surrounds with a mask).
__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t value;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(value) : "r"(a), "r"(b), "r"(selector));
    return value;
}

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Of each half; a NaN loses.
__device__ __forceinline__ uint32_t max_f16x2(uint32_t a, uint32_t b) {
    uint32_t value;
    asm("max.f16x2 %0, %1, %2;" : "=r"(value) : "r"(a), "r"(b));
    return value;
}

// Approximate.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The 8x8 matrix of 16-bit elements that the warp holds, transposed.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t fragment) {
    uint32_t value;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(value) : "r"(fragment));
    return value;
}

// Matrices of 8x8 16-bit elements from shared memory. Lane 8i + r says where row r of matrix i is: 16 bytes, aligned.
__device__ __forceinline__ void load_matrices(uint32_t address, uint32_t (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices(uint32_t address, uint32_t (&matrices)[2]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
}

// c += A B with 16x16 A, 16x8 B of 16-bit floats.
template <class T>
__device__ __forceinline__ void mma_16816(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                          uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_16816<__half>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                  uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                         uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The positions in a sparse operand ascend, which later toolkits want to be said.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define MUSTAFAR_MMA_SPARSE "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
#else
#define MUSTAFAR_MMA_SPARSE "mma.sp.sync.aligned.m16n8k32.row.col.f32."
#endif

// c += A B with 16x32 A, of which two of each four along k are stored, and 32x8 B of 16-bit floats. Lanes 4g + 2 Selector
// and the next one provide the positions.
template <class T, int Selector>
__device__ __forceinline__ void mma_sparse(float (&c)[4], const uint32_t (&a)[4], uint2 b01, uint2 b23,
                                           uint32_t positions) {
    if constexpr (std::is_same_v<T, __half>)
        asm volatile(MUSTAFAR_MMA_SPARSE
                     "f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b01.x), "r"(b01.y), "r"(b23.x), "r"(b23.y),
                       "r"(positions), "n"(Selector));
    else
        asm volatile(MUSTAFAR_MMA_SPARSE
                     "bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b01.x), "r"(b01.y), "r"(b23.x), "r"(b23.y),
                       "r"(positions), "n"(Selector));
}

#undef MUSTAFAR_MMA_SPARSE

// With a selector that the compiler finds out, as in an unrolled loop.
template <class T>
__device__ __forceinline__ void mma_sparse(float (&c)[4], const uint32_t (&a)[4], uint2 b01, uint2 b23,
                                           uint32_t positions, int selector) {
    if (selector == 0)
        mma_sparse<T, 0>(c, a, b01, b23, positions);
    else
        mma_sparse<T, 1>(c, a, b01, b23, positions);
}

// d = A B + c with 16x16 A of u8, 16x8 B of s8 (nearly everywhere not negative).
__device__ __forceinline__ void mma_u8(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const uint32_t (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a0), "r"(a1), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// d = popcount(A and B) summed over k, with 16x128 A, 128x8 B of bits.
__device__ __forceinline__ void mma_bits(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(0));
}

// The same with 16x256 A, 256x8 B, whose words are all `b`, added to c.
__device__ __forceinline__ void add_mma_bits(uint32_t (&c)[4], const uint32_t (&a)[4], uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %8}, {%0, "
        "%1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
}

// The highest bits of bytes 1 and 3 of two words, each repeated over a byte.
__device__ __forceinline__ uint32_t signs_of_halves(uint32_t low, uint32_t high) {
    uint32_t signs;
    asm("prmt.b32 %0, %1, %2, 0xfdb9;" : "=r"(signs) : "r"(low), "r"(high));
    return signs;
}

// Blocks the grid until the one before it in the stream has finished and its writes can be seen; lets the next one start.
__device__ __forceinline__ void wait_for_previous_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_grid_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Adds one to a counter, which starts over after `last`; returns what it was. What this thread has seen before is seen by
// every thread that finds the new value, on the whole device.
__device__ __forceinline__ uint32_t count_arrival(uint32_t* counter, uint32_t last) {
    uint32_t before;
    asm volatile("atom.inc.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last) : "memory");
    return before;
}

// *address, or null (0). Without a branch, behind which the loads before it would be waited for.
__device__ __forceinline__ void* load_if(bool condition, void* const* address) {
    void* value = nullptr;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.global.b64 %0, [%1];\n}"
                 : "+l"(value)
                 : "l"(address), "r"(static_cast<uint32_t>(condition)));
    return value;
}
__device__ __forceinline__ uint32_t load_if(bool condition, const int32_t* address) {
    uint32_t value = 0;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.global.b32 %0, [%1];\n}"
                 : "+r"(value)
                 : "l"(address), "r"(static_cast<uint32_t>(condition)));
    return value;
}

__device__ __forceinline__ void prefetch_l2(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Thread block clusters (sm_90 and later): consecutive thread blocks that run at the same time and can read each other's
// shared memory. Elsewhere every thread block is a cluster by itself.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

// All threads of the cluster; what they wrote before is seen by all after.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Likewise in two parts, for mbarriers alone (start_barrier): nothing else that was written before has to be seen.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The same place in the shared memory of thread block `rank` of the cluster.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
    uint32_t mapped = address;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
#endif
    return mapped;
}

// Likewise as a pointer.
template <class V>
__device__ __forceinline__ const V* cluster_pointer(const V* own, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
    uint64_t mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(own), "r"(rank));
    return reinterpret_cast<const V*>(mapped);
#else
    return own;
#endif
}

// Stores into the shared memory of a thread block of the cluster, which count as so many bytes at an mbarrier there. Both addresses are
// cluster_address's.
__device__ __forceinline__ void send(uint32_t address, float2 value, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
                 "f"(value.x), "f"(value.y), "r"(barrier)
                 : "memory");
#endif
}
__device__ __forceinline__ void send(uint32_t address, float4 value, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
        : "memory");
#endif
}

// An mbarrier that so many arrivals, and the bytes that they announce, complete.
__device__ __forceinline__ void start_barrier(uint32_t address, uint32_t arrivals = 1) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
__device__ __forceinline__ void wait_for_bytes(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni ready;\n"
        "bra.uni again;\n"
        "ready:\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
#endif
}

// For what is read once and need not drive anything out of the second-level cache.
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}

// Copies the box of a two-dimensional tensor that begins at (x, y) to shared memory; its bytes count at an mbarrier. x is along rows.
// tensor: a CUtensorMap in the parameters of the kernel.
__device__ __forceinline__ void copy_box(uint32_t target, const void* tensor, int x, int y, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            target),
        "l"(tensor), "r"(x), "r"(y), "r"(barrier)
        : "memory");
#endif
}
__device__ __forceinline__ void copy_box(uint32_t target, const void* tensor, int x, int y, uint32_t barrier,
                                         uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
        "%3}], "
        "[%4], %5;" ::"r"(target),
        "l"(tensor), "r"(x), "r"(y), "r"(barrier), "l"(policy)
        : "memory");
#endif
}

// A barrier of the thread block's first warps.
template <int Warps>
__device__ __forceinline__ void sync_warps() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * Warps) : "memory");
}

// Keeps a value in a register: the compiler can't compute it again where it is used.
__device__ __forceinline__ uint32_t pinned(uint32_t value) {
    asm volatile("" : "+r"(value));
    return value;
}

}  // namespace mustafar::cuda
