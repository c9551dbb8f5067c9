// RMSNorm with the residual added before it. Grid: one thread block a row.
#include <algorithm>

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/step/step.h"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {
namespace {

struct NormParams {
    Rows input, residual, output;  // [rows, hidden_size]
    const void* weight;            // [hidden_size]
    int32_t hidden_size;
    float eps;
    bool aligned;
};

template <class T>
__global__ void __launch_bounds__(1024) rms_norm_row(const __grid_constant__ NormParams p) {
    constexpr int count = Piece<T>::count;
    __shared__ float partial[32];
    const T* const input = p.input.row<const T>(blockIdx.x);
    T* const residual = p.residual.data != nullptr ? p.residual.row<T>(blockIdx.x) : nullptr;
    T* const output = p.output.row<T>(blockIdx.x);
    const T* const weight = static_cast<const T*>(p.weight);
    let_next_grid_start();
    wait_for_previous_grid();

    const int step = static_cast<int>(blockDim.x) * count;
    Piece<T> first;  // most rows are one piece for each thread, which then is not read again
    float sum = 0.0f;
    for (int c = static_cast<int>(threadIdx.x) * count; c < p.hidden_size; c += step) {
        const int valid = p.hidden_size - c;
        Piece<T> x = load_piece(input + c, valid, p.aligned);
        if (residual != nullptr) {
            const Piece<T> old = load_piece(residual + c, valid, p.aligned);
#pragma unroll
            for (int i = 0; i < count; ++i)
                x.values[i] = rounded_to<T>(as_float(x.values[i]) + as_float(old.values[i]));
            store_piece(residual + c, x, valid, p.aligned);
        }
#pragma unroll
        for (int i = 0; i < count; ++i) sum = fmaf(as_float(x.values[i]), as_float(x.values[i]), sum);
        if (c < step) first = x;
    }
    const float factor = 1.0f / sqrtf(block_sum(sum, partial) / static_cast<float>(p.hidden_size) + p.eps);
    const T* const source = residual != nullptr ? residual : input;  // each thread reads what it wrote itself
    for (int c = static_cast<int>(threadIdx.x) * count; c < p.hidden_size; c += step) {
        const int valid = p.hidden_size - c;
        Piece<T> x = c < step ? first : load_piece(source + c, valid, p.aligned);
        const Piece<T> scale = load_piece(weight + c, valid, p.aligned);
#pragma unroll
        for (int i = 0; i < count; ++i)
            x.values[i] = rounded_to<T>(as_float(x.values[i]) * factor * as_float(scale.values[i]));
        store_piece(output + c, x, valid, p.aligned);
    }
}

}  // namespace

void rms_norm(const mustafar_context& context, const mustafar_norm& norm) {
    if (norm.rows == 0) return;
    const DeviceScope scope(context);
    NormParams p{norm.input, norm.residual, norm.output, norm.weight, norm.hidden_size, norm.eps, false};
    p.aligned = has_pieces(norm.input, norm.hidden_size, norm.dtype) &&
                has_pieces(norm.residual, norm.hidden_size, norm.dtype) &&
                has_pieces(norm.output, norm.hidden_size, norm.dtype) && is_piece_aligned(norm.weight);
    dispatch_dtype("RMSNorm", norm.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const int64_t pieces = divide_up(norm.hidden_size, Piece<T>::count);
        const int threads = static_cast<int>(std::min<int64_t>(1024, 32 * divide_up(pieces, 32)));
        launch(scope, "RMSNorm", rms_norm_row<T>, LaunchShape{norm.rows, threads, 0, true}, p);
    });
}

}  // namespace mustafar::cuda
