// What the threads that share a row tell each other: those of one thread block, or of a cluster of them. Every exchange is for
// all of these threads, in the same order; its result is the same for all and does not depend on which of them was faster.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/ptx.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

constexpr int row_threads = 1024, row_warps = row_threads / 32, max_cluster = 8;
static_assert(row_warps == 32, "a lane reads the result of one warp");

// A number of another lane, or a structure whose `moved` does so for each of its numbers.
template <class V, class Move>
__device__ __forceinline__ V moved(const V& value, Move&& move) {
    if constexpr (std::is_arithmetic_v<V>)
        return move(value);
    else
        return value.moved(move);
}

template <class V>
__device__ __forceinline__ V from_lane(const V& value, int lane) {
    return moved(value, [&](auto number) { return __shfl_sync(all_lanes, number, lane); });
}

template <class V, class Combine>
__device__ __forceinline__ V over_lanes(V value, Combine&& combine) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value = combine(value, moved(value, [&](auto number) { return __shfl_xor_sync(all_lanes, number, offset); }));
    return value;
}

struct Plus {
    template <class V>
    __device__ __forceinline__ V operator()(const V& a, const V& b) const {
        return a + b;
    }
};

// The sum of this lane's value and those of the lanes before it.
template <class V>
__device__ __forceinline__ V running_sum(V value) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const V lower = moved(value, [&](auto number) { return __shfl_up_sync(all_lanes, number, offset); });
        if (static_cast<int>(threadIdx.x) % 32 >= offset) value = value + lower;
    }
    return value;
}

// Two places each, used in turn: a value is read until the next exchange, when the one after it may be written.
struct ClusterMemory {
    uint4 warp[2][row_warps], block[2];
};

template <class V>
struct Sums {
    V before, all;  // of the warps before this one, of all
};

class Cluster {
public:
    const int size, rank, warp, lane;  // warp: of the thread block

    __device__ __forceinline__ Cluster(ClusterMemory& memory, int size)
        : size(size), rank(size > 1 ? static_cast<int>(cluster_rank()) : 0), warp(threadIdx.x / 32),
          lane(threadIdx.x % 32), memory_(memory) {}

    // What was written to shared memory before is seen by all threads after.
    __device__ __forceinline__ void barrier() const {
        if (size > 1) {
            __syncwarp();  // lanes may have parted
            cluster_barrier();
        } else {
            __syncthreads();
        }
    }

    // The sum of read(rank) over the thread blocks.
    template <class Read>
    __device__ __forceinline__ auto over_blocks(Read&& read) const {
        decltype(read(0)) parts[max_cluster], sum{};
        // Without conditions, so that all loads are under way together.
#pragma unroll
        for (int r = 0; r < max_cluster; ++r) parts[r] = read(r < size ? r : rank);
#pragma unroll
        for (int r = 0; r < max_cluster; ++r)
            if (r < size) sum = sum + parts[r];
        return sum;
    }

    // All threads' values combined. `neutral` changes nothing.
    template <class V, class Combine>
    __device__ __forceinline__ V all(V value, const V& neutral, Combine&& combine) {
        value = over_lanes(value, combine);
        if (lane == 0) place<V>(memory_.warp[turn_][warp]) = value;
        __syncthreads();
        value = over_lanes(place<V>(memory_.warp[turn_][lane]), combine);
        if (size > 1) {
            publish(value);
            value = over_lanes(lane < size ? published<V>() : neutral, combine);
        }
        turn_ ^= 1;
        return value;
    }

    // `own`: of the warp.
    template <class V>
    __device__ __forceinline__ Sums<V> sums(const V& own) {
        if (lane == 0) place<V>(memory_.warp[turn_][warp]) = own;
        __syncthreads();
        const V warps = running_sum(place<V>(memory_.warp[turn_][lane]));
        Sums<V> result{from_lane(warps, warp) - own, from_lane(warps, row_warps - 1)};
        if (size > 1) {
            const V block = result.all;
            publish(block);
            const V blocks = running_sum(lane < size ? published<V>() : V{});
            result.before = result.before + from_lane(blocks, rank) - block;
            result.all = from_lane(blocks, size - 1);
        }
        turn_ ^= 1;
        return result;
    }

private:
    template <class V>
    __device__ __forceinline__ static V& place(uint4& memory) {
        static_assert(sizeof(V) <= sizeof(uint4));
        return reinterpret_cast<V&>(memory);
    }
    template <class V>
    __device__ __forceinline__ void publish(const V& value) {
        if (threadIdx.x == 0) place<V>(memory_.block[turn_]) = value;
        cluster_barrier();
    }
    template <class V>
    __device__ __forceinline__ V published() const {
        return *cluster_pointer(&place<V>(memory_.block[turn_]), lane);
    }

    ClusterMemory& memory_;
    int turn_ = 0;
};

}  // namespace mustafar::cuda
