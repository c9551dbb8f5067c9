// Counts and sums of weights by bin in shared memory, and where in them a target is reached. Integers, so that the order of
// additions does not show.
#pragma once

#include <cstdint>

#include "cuda/step/values.cuh"

namespace mustafar::cuda {

// Tokens and the sum of their weights.
struct Tally {
    uint64_t mass;
    uint32_t count;

    __device__ __forceinline__ uint64_t metric(bool by_mass) const { return by_mass ? mass : count; }
    __device__ __forceinline__ Tally operator+(const Tally& other) const {
        return {mass + other.mass, count + other.count};
    }
};

// The bin in which the running metric reaches a target, and what stands before it.
struct Found {
    Tally before, inside;
    int bin;
};

template <int Bins, int Threads>
struct Histogram {
    static constexpr int own = Bins / Threads;  // bins of one thread
    static_assert(Bins % Threads == 0 && Threads % 32 == 0 && Threads <= 1024);

    uint32_t count[Bins], low[Bins], high[Bins];  // of the sums, which shared memory adds in halves
    Tally warp_total[Threads / 32];
    Found found;

    __device__ __forceinline__ void clear() {
        for (int i = static_cast<int>(threadIdx.x); i < Bins; i += Threads) count[i] = low[i] = high[i] = 0;
        __syncthreads();
    }

    __device__ __forceinline__ void add(int bin, const Tally& tally) {
        atomicAdd(&count[bin], tally.count);
        const uint32_t part = static_cast<uint32_t>(tally.mass);
        const uint32_t carry = atomicAdd(&low[bin], part) > ~part ? 1 : 0;
        const uint32_t rest = static_cast<uint32_t>(tally.mass >> 32) + carry;
        if (rest != 0) atomicAdd(&high[bin], rest);
    }

    __device__ __forceinline__ Tally at(int bin) const { return {uint64_t{high[bin]} << 32 | low[bin], count[bin]}; }

    // For all threads, after a barrier behind the last add: the first bin with which the running metric is at least
    // `target`, which is 1 ... the total.
    __device__ __forceinline__ Found find(bool by_mass, uint64_t target) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = static_cast<int>(threadIdx.x) * own;
        const Tally mine = of_thread();
        Tally running = mine;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const Tally lower{__shfl_up_sync(all_lanes, running.mass, offset),
                              __shfl_up_sync(all_lanes, running.count, offset)};
            if (lane >= offset) running = running + lower;
        }
        if (lane == 31) warp_total[warp] = running;
        __syncthreads();
        for (int w = 0; w < warp; ++w) running = running + warp_total[w];
        Tally before{running.mass - mine.mass, running.count - mine.count};
        if (before.metric(by_mass) < target && running.metric(by_mass) >= target) {
            int bin = first;
            while ((before + at(bin)).metric(by_mass) < target) before = before + at(bin++);
            found = {before, at(bin), bin};
        }
        __syncthreads();
        return found;
    }

    // Of all bins; for all threads, after a barrier behind the last add.
    __device__ __forceinline__ Tally total() {
        Tally sum = of_thread();
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            sum = sum +
                  Tally{__shfl_xor_sync(all_lanes, sum.mass, offset), __shfl_xor_sync(all_lanes, sum.count, offset)};
        if (threadIdx.x % 32 == 0) warp_total[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = {};
        for (const Tally& part : warp_total) sum = sum + part;
        __syncthreads();
        return sum;
    }

private:
    __device__ __forceinline__ Tally of_thread() const {
        Tally sum{};
        for (int i = 0; i < own; ++i) sum = sum + at(static_cast<int>(threadIdx.x) * own + i);
        return sum;
    }
};

// Adds up a thread's tokens of one bin for as long as they follow each other, since equal logits often do and would
// otherwise wait for each other.
template <class Bins>
class RunOfBin {
public:
    __device__ __forceinline__ explicit RunOfBin(Bins& histogram) : histogram_(histogram) {}

    __device__ __forceinline__ void add(int bin, uint64_t weight) {
        if (bin != bin_) {
            flush();
            bin_ = bin;
            tally_ = {};
        }
        tally_ = tally_ + Tally{weight, 1};
    }
    __device__ __forceinline__ void flush() {
        if (tally_.count != 0) histogram_.add(bin_, tally_);
    }

private:
    Bins& histogram_;
    Tally tally_{};
    int bin_ = -1;
};

}  // namespace mustafar::cuda
