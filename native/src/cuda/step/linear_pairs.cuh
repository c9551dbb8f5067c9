// What the kernels of linear layers have in common: the rows of input that they bring to shared memory, and what becomes of
// the sums of two rows of the weight.
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

// The input's rows on their way to xs, normalised and rounded if there is a norm, with zeros behind each. All warps take
// part, each in one row; what it loads from global memory, it loads at once as far as registers go, since the weight's
// stream pauses meanwhile.
template <class T, int InputRows, int Batch = 8, int NormBatch = 8>
class InputRow {
public:
    // The norm is a weight: what it begins with is loaded before the previous grid has ended.
    __device__ __forceinline__ InputRow(const LinearParams& p, T* xs)
        : p_(p), row_(static_cast<int>(threadIdx.x) / threads), own_((static_cast<int>(threadIdx.x) % threads) * count),
          xs_(xs + row_ * p.padded) {
        if (p.norm != nullptr) load(norm_, static_cast<const T*>(p.norm), own_);
    }

    // `partial`: a float for each warp. Ends with a barrier.
    __device__ __forceinline__ void prepare(float* partial) {
        const T* const input = p_.input.row<const T>(p_.first_row + row_);
        float sum = 0.0f;
#pragma unroll 1
        for (int c = own_; c < p_.padded; c += Batch * stride) {
            Piece<T> x[Batch];
            load(x, input, c);
#pragma unroll
            for (int b = 0; b < Batch; ++b) {
                if (c + b * stride < p_.padded) *piece(c + b * stride) = x[b];
#pragma unroll
                for (int i = 0; i < count; ++i) sum = fmaf(as_float(x[b].values[i]), as_float(x[b].values[i]), sum);
            }
        }
        if (p_.norm != nullptr) normalise(total(sum, partial));
        __syncthreads();
    }

private:
    static constexpr int count = Piece<T>::count, threads = 32 * linear_warps / InputRows, stride = threads * count;

    template <int Count>
    __device__ __forceinline__ void load(Piece<T> (&pieces)[Count], const T* source, int c) const {
#pragma unroll
        for (int b = 0; b < Count; ++b)
            pieces[b] = load_piece(source + c + b * stride, p_.in_features - c - b * stride, p_.input_aligned);
    }
    __device__ __forceinline__ Piece<T>* piece(int c) const {
        return reinterpret_cast<Piece<T>*>(xs_ + c);
    }

    // Over the warps that share the row.
    __device__ __forceinline__ float total(float sum, float* partial) const {
        constexpr int sharing = linear_warps / InputRows;
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0.0f;
#pragma unroll
        for (int w = 0; w < sharing; ++w) sum += partial[row_ * sharing + w];
        return sum;
    }

    __device__ __forceinline__ void normalise(float sum) {
        const float factor = 1.0f / sqrtf(sum / static_cast<float>(p_.in_features) + p_.eps);
#pragma unroll 1
        for (int c = own_; c < p_.padded; c += NormBatch * stride) {
            if (c != own_) load(norm_, static_cast<const T*>(p_.norm), c);
#pragma unroll
            for (int b = 0; b < NormBatch; ++b) {
                if (c + b * stride >= p_.padded) continue;
                Piece<T>& x = *piece(c + b * stride);
#pragma unroll
                for (int i = 0; i < count; ++i)
                    x.values[i] = rounded_to<T>(as_float(x.values[i]) * factor * as_float(norm_[b].values[i]));
            }
        }
    }

    const LinearParams& p_;
    int row_, own_;
    T* xs_;
    Piece<T> norm_[NormBatch];
};

// Of two rows of the weight (gate and up, or neighbours) the sums a and b become the output's elements.
template <class T, bool Gated>
__device__ __forceinline__ void finish_pair(const LinearParams& p, int64_t row, int pair, float a, float b) {
    const int output = Gated ? pair : 2 * pair;
    const bool second = !Gated && output + 1 < p.out_features;
    const T* const bias = static_cast<const T*>(p.bias);
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

// Likewise of four neighbouring outputs of a row, from `output` on as far as there are any; up: of the gates in `first`.
template <class T, bool Gated>
__device__ __forceinline__ void finish_quad(const LinearParams& p, int64_t row, int output, const float (&first)[4],
                                            const float (&up)[4]) {
    const T* const bias = static_cast<const T*>(p.bias);
    const T* const residual = p.residual.data == nullptr ? nullptr : p.residual.row<const T>(row);
    T* const target = p.output.row<T>(row);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int at = output + i;
        if (at >= p.out_features) return;
        float value = first[i] + (bias == nullptr ? 0.0f : as_float(bias[at]));
        if (Gated) value = silu(value) * (up[i] + (bias == nullptr ? 0.0f : as_float(bias[at + p.out_features])));
        if (residual != nullptr) value += as_float(residual[at]);
        target[at] = rounded_to<T>(value);
    }
}

}  // namespace mustafar::cuda
