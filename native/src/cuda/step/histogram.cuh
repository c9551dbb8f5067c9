// Counts and sums of weights by bin in shared memory, and where in them a target is reached. Integers, so that the order of
// additions does not show. Each thread block of a cluster counts its own tokens; only what the search needs of the others' is
// read, first the sums of groups of bins, then the bins of one group.
#pragma once

#include <cstdint>

#include "cuda/step/cluster.cuh"

namespace mustafar::cuda {

// Tokens and the sum of their weights.
struct Tally {
    uint64_t mass, count;

    __device__ __forceinline__ uint64_t metric(bool by_mass) const { return by_mass ? mass : count; }
    __device__ __forceinline__ Tally operator+(const Tally& other) const {
        return {mass + other.mass, count + other.count};
    }
    __device__ __forceinline__ Tally operator-(const Tally& other) const {
        return {mass - other.mass, count - other.count};
    }
    template <class Move>
    __device__ __forceinline__ Tally moved(Move&& move) const {
        return {move(mass), move(count)};
    }
};

// The bin in which the running metric reaches a target, and what stands before it. bin < 0: there was none to search.
struct Found {
    Tally before, inside;
    uint64_t target;
    int bin;
};

constexpr int bin_bits = 10, bin_count = 1 << bin_bits;
static_assert(bin_count == row_threads, "one bin for each thread, one group for each warp");

struct HistogramMemory {
    struct Bins {
        uint32_t count[bin_count], low[bin_count], high[bin_count];  // of the sums, which shared memory adds in halves
        Tally group[row_warps];

        __device__ __forceinline__ void clear(int bin) { count[bin] = low[bin] = high[bin] = 0; }
        __device__ __forceinline__ Tally at(int bin) const {
            return {uint64_t{high[bin]} << 32 | low[bin], count[bin]};
        }
    };
    // In turn: while one is searched, the other is cleared, which no thread block reads any more.
    Bins bins[2];
    Found found;
};

class Histogram {
public:
    // The cluster's next exchange makes the memory ready.
    __device__ __forceinline__ Histogram(HistogramMemory& memory, const Cluster& cluster)
        : memory_(memory), cluster_(cluster) {
        for (auto& bins : memory.bins) bins.clear(static_cast<int>(threadIdx.x));
    }

    __device__ __forceinline__ void add(int bin, const Tally& tally) {
        auto& bins = memory_.bins[turn_];
        atomicAdd(&bins.count[bin], static_cast<uint32_t>(tally.count));
        if (tally.mass == 0) return;
        const uint32_t part = static_cast<uint32_t>(tally.mass);
        const uint32_t carry = atomicAdd(&bins.low[bin], part) > ~part ? 1 : 0;
        const uint32_t rest = static_cast<uint32_t>(tally.mass >> 32) + carry;
        if (rest != 0) atomicAdd(&bins.high[bin], rest);
    }

    // The first bin with which the running metric is at least target_of(sum of all bins); a target of 0, or above the sum:
    // none. The histogram is empty afterwards.
    template <class Target>
    __device__ __forceinline__ Found find(bool by_mass, Target&& target_of) {
        const int own = static_cast<int>(threadIdx.x);
        auto& bins = memory_.bins[turn_];
        __syncthreads();
        const Tally group = over_lanes(bins.at(own), Plus());
        if (cluster_.lane == 0) bins.group[cluster_.warp] = group;
        cluster_.barrier();
        turn_ ^= 1;
        memory_.bins[turn_].clear(own);
        if (cluster_.warp == 0) search(bins, by_mass, target_of);
        __syncthreads();
        return memory_.found;
    }

private:
    template <class Target>
    __device__ __forceinline__ void search(const HistogramMemory::Bins& bins, bool by_mass, Target&& target_of) {
        const int lane = cluster_.lane;
        const Tally group = cluster_.over_blocks([&](int rank) { return *cluster_pointer(&bins.group[lane], rank); });
        const Tally groups = running_sum(group), sum = from_lane(groups, 31);
        const uint64_t target = target_of(sum);
        if (target == 0 || target > sum.metric(by_mass)) {
            if (lane == 0) memory_.found = {{}, {}, 0, -1};
            return;
        }
        const int in_group = first_reaching(groups, by_mass, target), bin = in_group * 32 + lane;
        const Tally inside = cluster_.over_blocks([&](int rank) { return cluster_pointer(&bins, rank)->at(bin); });
        const Tally up_to = from_lane(groups - group, in_group) + running_sum(inside);
        if (lane == first_reaching(up_to, by_mass, target)) memory_.found = {up_to - inside, inside, target, bin};
    }

    // The lane.
    __device__ __forceinline__ static int first_reaching(const Tally& up_to, bool by_mass, uint64_t target) {
        return __ffs(static_cast<int>(__ballot_sync(all_lanes, up_to.metric(by_mass) >= target))) - 1;
    }

    HistogramMemory& memory_;
    const Cluster& cluster_;
    int turn_ = 0;
};

// Adds up a thread's tokens of one bin for as long as they follow each other, since equal logits often do and would
// otherwise wait for each other.
class RunOfBin {
public:
    __device__ __forceinline__ explicit RunOfBin(Histogram& histogram) : histogram_(histogram) {}

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
    Histogram& histogram_;
    Tally tally_{};
    int bin_ = -1;
};

}  // namespace mustafar::cuda
