// A linear layer for one row of input, the whole of which goes through registers.
//
// Grid: a warp for each pair of the weight's rows, or for a few one after the other where there are very many, so that
// multiprocessors take up thread blocks as they finish others. A lane has two stages of both rows under way, the first of
// which it asks for before the previous grid has finished.
#pragma once

#include <atomic>

#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/step/linear_pairs.cuh"

namespace mustafar::cuda {

constexpr int row_depth = 4;  // pieces of each row in a stage

template <class T>
constexpr int row_stage = 32 * Piece<T>::count* row_depth;  // elements

// Read once: it need not stay in a cache.
template <class T>
__device__ __forceinline__ Piece<T> load_streaming(const T* source) {
    Piece<T> piece;
    *reinterpret_cast<uint4*>(&piece) = __ldcs(reinterpret_cast<const uint4*>(source));
    return piece;
}

template <class T>
struct RowStage {
    Piece<T> pieces[2][row_depth];

    __device__ __forceinline__ void fetch(const T* first, const T* second) {
#pragma unroll
        for (int u = 0; u < row_depth; ++u) {
            pieces[0][u] = load_streaming(first + u * 32 * Piece<T>::count);
            pieces[1][u] = load_streaming(second + u * 32 * Piece<T>::count);
        }
    }

    __device__ __forceinline__ void add(const T* xs, float& a, float& b) const {
#pragma unroll
        for (int u = 0; u < row_depth; ++u) {
            const Piece<T> x = *reinterpret_cast<const Piece<T>*>(xs + u * 32 * Piece<T>::count);
#pragma unroll
            for (int i = 0; i < Piece<T>::count; ++i) {
                a = fmaf(as_float(x.values[i]), as_float(pieces[0][u].values[i]), a);
                b = fmaf(as_float(x.values[i]), as_float(pieces[1][u].values[i]), b);
            }
        }
    }
};

// rounds: pairs that a warp computes.
template <class T, bool Gated>
__global__ void __launch_bounds__(32 * linear_warps)
    linear_one_row(const __grid_constant__ LinearParams p, int rounds) {
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ float partial[linear_warps];
    T* const xs = reinterpret_cast<T*>(memory);
    const int lane = threadIdx.x % 32, own = lane * Piece<T>::count;
    const int pairs = Gated ? p.out_features : p.out_features / 2;
    int pair = static_cast<int>(blockIdx.x) * rounds * linear_warps + static_cast<int>(threadIdx.x) / 32;
    const T *first, *second;
    RowStage<T> even, odd;
    const auto start = [&](int at) {
        first = p.weight.row<const T>(Gated ? at : 2 * at) + own;
        second = p.weight.row<const T>(Gated ? at + p.out_features : 2 * at + 1) + own;
        even.fetch(first, second);
        if (row_stage<T> < p.in_features) odd.fetch(first + row_stage<T>, second + row_stage<T>);
    };
    start(min(pair, pairs - 1));
    let_next_grid_start();
    wait_for_previous_grid();
    prepare<T, 1>(p, xs, partial);

    for (int round = 0; round < rounds && pair < pairs; ++round, pair += linear_warps) {
        if (round > 0) start(pair);
        float a = 0.0f, b = 0.0f;
#pragma unroll 1
        for (int at = 0; at < p.in_features; at += 2 * row_stage<T>) {
            even.add(xs + at + own, a, b);
            if (at + 2 * row_stage<T> < p.in_features)
                even.fetch(first + at + 2 * row_stage<T>, second + at + 2 * row_stage<T>);
            if (at + row_stage<T> >= p.in_features) break;
            odd.add(xs + at + row_stage<T> + own, a, b);
            if (at + 3 * row_stage<T> < p.in_features)
                odd.fetch(first + at + 3 * row_stage<T>, second + at + 3 * row_stage<T>);
        }
        a = warp_sum(a);
        b = warp_sum(b);
        if (lane == 0) finish_pair<T, Gated>(p, p.first_row, pair, a, b);
    }
}

// Whether a row consists of whole stages, lies aligned, and leaves several thread blocks room beside each other.
template <class T>
bool serves_one_row(const LinearParams& p) {
    constexpr int64_t most_bytes = 64 << 10;
    return p.aligned && p.input_aligned && p.in_features % row_stage<T> == 0 && p.out_features % 2 == 0 &&
           int64_t{p.in_features} * static_cast<int64_t>(sizeof(T)) <= most_bytes;
}

template <class T, bool Gated>
void start_one_row(const DeviceScope& scope, const LinearParams& p) {
    static std::atomic<uint64_t> allowed{0};
    const auto kernel = linear_one_row<T, Gated>;
    allow_shared_memory(scope, kernel, allowed, 1024);
    const int64_t pairs = Gated ? p.out_features : p.out_features / 2;
    const int rounds = pairs > 32768 ? 4 : pairs > 8192 ? 2 : 1;
    const int64_t of_block = int64_t{rounds} * linear_warps;
    launch(scope, "linear", kernel,
           LaunchShape{(pairs + of_block - 1) / of_block, 32 * linear_warps,
                       static_cast<size_t>(p.in_features) * sizeof(T), true},
           p, rounds);
}

}  // namespace mustafar::cuda
