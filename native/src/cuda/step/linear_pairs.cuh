// What the kernels of linear layers have in common: a warp computes two outputs, or gate and up of one, at a time.
#pragma once

#include "cuda/step/values.cuh"

namespace mustafar::cuda {

constexpr int linear_warps = 8;  // of a thread block

struct LinearParams {
    Rows input, weight, residual, output;
    const void* norm;                                      // [in_features]
    const void* bias;                                      // [rows of the weight]
    int32_t first_row, in_features, out_features, padded;  // padded: in_features, rounded up to whole stages
    float eps;
    bool aligned, input_aligned;
};

// The outputs of a pair of the weight's rows, from their products with one row of the input. One thread.
template <class T, bool Gated>
__device__ __forceinline__ void finish_pair(const LinearParams& p, int64_t row, int pair, float a, float b) {
    const int output = Gated ? pair : 2 * pair;
    const T* const bias = static_cast<const T*>(p.bias);
    const bool second = !Gated && output + 1 < p.out_features;
    if (bias != nullptr) {
        a += as_float(bias[output]);
        if (Gated || second) b += as_float(bias[Gated ? output + p.out_features : output + 1]);
    }
    if (Gated) a = silu(a) * b;
    if (p.residual.data != nullptr) {
        const T* const residual = p.residual.row<const T>(row) + output;
        a += as_float(residual[0]);
        if (second) b += as_float(residual[1]);
    }
    T* const target = p.output.row<T>(row) + output;
    target[0] = rounded_to<T>(a);
    if (second) target[1] = rounded_to<T>(b);
}

// xs[r] = the input's row r, normalised and rounded if there is a norm, with zeros behind it.
template <class T, int InputRows>
__device__ __forceinline__ void prepare(const LinearParams& p, T* xs, float* partial) {
    constexpr int count = Piece<T>::count;
    const T* const norm = static_cast<const T*>(p.norm);
#pragma unroll 1
    for (int r = 0; r < InputRows; ++r) {
        const T* const input = p.input.row<const T>(p.first_row + r);
        float sum = 0.0f;
        for (int c = static_cast<int>(threadIdx.x) * count; c < p.padded; c += 32 * linear_warps * count) {
            const Piece<T> x = load_piece(input + c, p.in_features - c, p.input_aligned);
            *reinterpret_cast<Piece<T>*>(xs + r * p.padded + c) = x;
#pragma unroll
            for (int i = 0; i < count; ++i) sum = fmaf(as_float(x.values[i]), as_float(x.values[i]), sum);
        }
        if (norm == nullptr) continue;
        const float factor = 1.0f / sqrtf(block_sum(sum, partial) / static_cast<float>(p.in_features) + p.eps);
        for (int c = static_cast<int>(threadIdx.x) * count; c < p.padded; c += 32 * linear_warps * count) {
            auto& x = *reinterpret_cast<Piece<T>*>(xs + r * p.padded + c);
            const Piece<T> scale = load_piece(norm + c, p.in_features - c, p.input_aligned);
#pragma unroll
            for (int i = 0; i < count; ++i)
                x.values[i] = rounded_to<T>(as_float(x.values[i]) * factor * as_float(scale.values[i]));
        }
        __syncthreads();  // partial is free again
    }
    __syncthreads();
}

}  // namespace mustafar::cuda
