// A linear layer for one row of input whose weight is aligned: the weight goes through registers.
//
// Grid: two thread blocks a multiprocessor. A warp takes two rows of the weight at a time, as in linear.cu, and strides over all
// such pairs. A lane has two stages of both rows under way, the first of which it asks for before the previous grid has ended,
// and those of the next pair before it sums up.
#pragma once

#include <algorithm>
#include <atomic>

#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/step/linear_pairs.cuh"

namespace mustafar::cuda {

constexpr int row_depth = 4;  // pieces of each row in a stage

template <class T>
constexpr int row_stage = 32 * Piece<T>::count* row_depth;  // elements

// Part of both rows of a pair, a lane's share.
template <class T, bool Whole>
struct RowStage {
    uint4 pieces[2][row_depth];

    // valid: how many elements there are from `first` on.
    __device__ __forceinline__ void fetch(const T* first, const T* second, int valid) {
#pragma unroll
        for (int u = 0; u < row_depth; ++u) {
            const int c = u * 32 * Piece<T>::count;
            pieces[0][u] = load(first + c, valid - c);
            pieces[1][u] = load(second + c, valid - c);
        }
    }

    __device__ __forceinline__ void add(const T* xs, float& a, float& b) const {
#pragma unroll
        for (int u = 0; u < row_depth; ++u) {
            const Piece<T> x = *reinterpret_cast<const Piece<T>*>(xs + u * 32 * Piece<T>::count);
            const auto &first = reinterpret_cast<const Piece<T>&>(pieces[0][u]),
                       &second = reinterpret_cast<const Piece<T>&>(pieces[1][u]);
#pragma unroll
            for (int i = 0; i < Piece<T>::count; ++i) a = fmaf(as_float(x.values[i]), as_float(first.values[i]), a);
#pragma unroll
            for (int i = 0; i < Piece<T>::count; ++i) b = fmaf(as_float(x.values[i]), as_float(second.values[i]), b);
        }
    }

private:
    // Read once: it need not stay in a cache.
    static __device__ __forceinline__ uint4 load(const T* source, int valid) {
        return Whole || valid > 0 ? __ldcs(reinterpret_cast<const uint4*>(source)) : make_uint4(0, 0, 0, 0);
    }
};

// Whole: rows are made of whole stages.
template <class T, bool Gated, bool Whole>
__global__ void __launch_bounds__(32 * linear_warps, 2) linear_one_row(const __grid_constant__ LinearParams p) {
    constexpr int stage = row_stage<T>;
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ float partial[linear_warps];
    T* const xs = reinterpret_cast<T*>(memory);
    const int lane = threadIdx.x % 32, own = lane * Piece<T>::count;
    const int pairs = Gated ? p.out_features : (p.out_features + 1) / 2,
              step = static_cast<int>(gridDim.x) * linear_warps;
    int pair = static_cast<int>(blockIdx.x) * linear_warps + static_cast<int>(threadIdx.x) / 32;
    const T *first, *second;
    RowStage<T, Whole> even, odd;
    const auto fetch = [&](RowStage<T, Whole>& target, int at) {
        target.fetch(first + at, second + at, p.in_features - own - at);
    };
    const auto start = [&](int at) {
        first = p.weight.row<const T>(Gated ? at : 2 * at) + own;
        // The last pair of an odd number of outputs has one row only.
        second = p.weight.row<const T>(Gated ? at + p.out_features : min(2 * at + 1, p.out_features - 1)) + own;
        fetch(even, 0);
        if (stage < p.in_features) fetch(odd, stage);
    };
    start(min(pair, pairs - 1));
    InputRow<T, 1, 8, 2> input(p, xs);
    let_next_grid_start();
    wait_for_previous_grid();
    input.prepare(partial);

    while (pair < pairs) {
        float a = 0.0f, b = 0.0f;
#pragma unroll 1
        for (int at = 0; at < p.in_features; at += 2 * stage) {
            even.add(xs + at + own, a, b);
            if (at + 2 * stage < p.in_features) fetch(even, at + 2 * stage);
            if (at + stage >= p.in_features) break;
            odd.add(xs + at + stage + own, a, b);
            if (at + 3 * stage < p.in_features) fetch(odd, at + 3 * stage);
        }
        const int done = pair;
        pair += step;
        if (pair < pairs) start(pair);
        a = warp_sum(a);
        b = warp_sum(b);
        if (lane == 0) finish_pair<T, Gated>(p, p.first_row, done, a, b);
    }
}

// Whether a row of the weight can be read in pieces, and an input leaves two thread blocks room beside each other.
template <class T>
bool serves_one_row(const LinearParams& p) {
    constexpr int64_t most_bytes = 64 << 10;
    return p.aligned && int64_t{p.padded} * static_cast<int64_t>(sizeof(T)) <= most_bytes;
}

// p.padded is a multiple of row_stage.
template <class T, bool Gated>
void start_one_row(const DeviceScope& scope, const LinearParams& p) {
    const auto start = [&](auto kernel, std::atomic<uint64_t>& allowed) {
        allow_shared_memory(scope, kernel, allowed, 1024);
        const int64_t pairs = Gated ? p.out_features : divide_up(p.out_features, 2);
        launch(scope, "linear", kernel,
               LaunchShape{std::min<int64_t>(2 * scope.properties().multiprocessors, divide_up(pairs, linear_warps)),
                           32 * linear_warps, static_cast<size_t>(p.padded) * sizeof(T), true},
               p);
    };
    static std::atomic<uint64_t> allowed[2]{};
    if (p.in_features % row_stage<T> == 0)
        start(linear_one_row<T, Gated, true>, allowed[0]);
    else
        start(linear_one_row<T, Gated, false>, allowed[1]);
}

}  // namespace mustafar::cuda
