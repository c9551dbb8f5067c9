// silu(gate) * up. Grid: x = pieces of a row fastest, then rows.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/step/step.h"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {
namespace {

constexpr int threads = 128;

template <class T>
__global__ void __launch_bounds__(threads)
    silu_mul_row(const Rows input, const Rows output, int32_t width, int32_t blocks, bool aligned) {
    constexpr int count = Piece<T>::count;
    const int row = static_cast<int>(blockIdx.x / blocks);
    const int c = (static_cast<int>(blockIdx.x % blocks) * threads + static_cast<int>(threadIdx.x)) * count;
    let_next_grid_start();
    wait_for_previous_grid();
    if (c >= width) return;
    const T* const gates = input.row<const T>(row);
    Piece<T> gate = load_piece(gates + c, width - c, aligned);
    const Piece<T> up = load_piece(gates + width + c, width - c, aligned);
#pragma unroll
    for (int i = 0; i < count; ++i)
        gate.values[i] = rounded_to<T>(silu(as_float(gate.values[i])) * as_float(up.values[i]));
    store_piece(output.row<T>(row) + c, gate, width - c, aligned);
}

}  // namespace

void silu_mul(const mustafar_context& context, int32_t dtype, int64_t rows, int32_t width, const mustafar_rows& input,
              const mustafar_rows& output) {
    const DeviceScope scope(context);
    const bool aligned = has_pieces(input, width, dtype) && has_pieces(output, width, dtype);
    dispatch_dtype("SiLU", dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const int64_t blocks = divide_up(width, threads * Piece<T>::count);
        launch(scope, "SiLU", silu_mul_row<T>, LaunchShape{rows * blocks, threads, 0, true}, Rows(input), Rows(output),
               width, static_cast<int32_t>(blocks), aligned);
    });
}

}  // namespace mustafar::cuda
