// A linear layer for few rows of input, limited by reading the weight. One row has a kernel of its own where the weight is
// aligned (linear_row.cuh), and so have more where tensor cores serve them (linear_tiles.cuh); the rest is done here.
//
// Grid: at most one thread block a multiprocessor, eight warps each. A warp takes two rows of the weight at a time (gate and
// up of one output, or two neighbouring ones) and strides over all such pairs. Each lane streams its own 16-byte pieces
// through a ring in shared memory (cp.async), across the ends of rows, so that reading never pauses; the first stages are
// under way before the previous grid has finished. Nobody reads what another lane copied, so the ring needs no barrier.
#include <algorithm>

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/step/linear_row.cuh"
#include "cuda/step/linear_tiles.h"
#include "cuda/step/step.h"

namespace mustafar::cuda {
namespace {

constexpr int warps = linear_warps, unroll = 2;  // pieces of each of the two rows in one stage

template <class T>
constexpr int stage_elements = 32 * unroll* Piece<T>::count;
constexpr int stage_bytes = 2 * unroll * 32 * 16;  // of one warp

__device__ __forceinline__ void copy_async(uint32_t target, const void* source, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0)
                 : "memory");
}

// The warp's pairs of rows as one stream of stages.
template <class T, bool Gated, int Stages>
class Stream {
public:
    __device__ __forceinline__ Stream(const LinearParams& p, uint8_t* ring, int first, int step, int pairs)
        : p_(p), ring_(ring + threadIdx.x % 32 * 16), pair_(first), step_(step), pairs_(pairs) {}

    // Starts to copy the next stage, or nothing past the end.
    __device__ __forceinline__ void fetch() {
        if (pair_ < pairs_) {
            const int lane = threadIdx.x % 32;
            uint8_t* const stage = ring_ + slot_ * stage_bytes;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = weight_row(r);
                const bool there = row >= 0;
                const T* const source = p_.weight.row<const T>(there ? row : 0);
#pragma unroll
                for (int u = 0; u < unroll; ++u) {
                    const int c = at_ + (u * 32 + lane) * Piece<T>::count;
                    const int valid = there ? p_.in_features - c : 0;
                    uint8_t* const target = stage + (r * unroll + u) * 512;
                    if (p_.aligned)
                        copy_async(shared_address(target), valid > 0 ? source + c : source, valid > 0);
                    else
                        *reinterpret_cast<Piece<T>*>(target) = load_piece(source + c, valid, false);
                }
            }
            at_ += stage_elements<T>;
            if (at_ >= p_.in_features) {
                at_ = 0;
                pair_ += step_;
            }
            if (++slot_ == Stages) slot_ = 0;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    static __device__ __forceinline__ void wait() {
        asm volatile("cp.async.wait_group %0;" ::"n"(Stages - 2) : "memory");
    }

private:
    // -1: the last pair of an odd number of outputs has one row only
    __device__ __forceinline__ int weight_row(int r) const {
        if (Gated) return pair_ + r * p_.out_features;
        return 2 * pair_ + r < p_.out_features ? 2 * pair_ + r : -1;
    }

    const LinearParams& p_;
    uint8_t* ring_;
    int pair_, step_, pairs_, at_ = 0, slot_ = 0;
};

template <class T, int InputRows, bool Gated, int Stages>
__global__ void __launch_bounds__(32 * warps, 2) linear_rows(const __grid_constant__ LinearParams p) {
    constexpr int count = Piece<T>::count;
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ float partial[warps];
    T* const xs = reinterpret_cast<T*>(memory + warps * Stages * stage_bytes);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint8_t* const ring = memory + warp * Stages * stage_bytes;
    const int pairs = Gated ? p.out_features : (p.out_features + 1) / 2;
    const int first = static_cast<int>(blockIdx.x) * warps + warp, step = static_cast<int>(gridDim.x) * warps;
    Stream<T, Gated, Stages> stream(p, ring, first, step, pairs);
#pragma unroll
    for (int s = 0; s < Stages - 1; ++s) stream.fetch();
    InputRow<T, InputRows> input(p, xs);
    let_next_grid_start();
    wait_for_previous_grid();
    input.prepare(partial);

    int slot = 0;
    for (int pair = first; pair < pairs; pair += step) {
        float sums[2][InputRows] = {};
        for (int at = 0; at < p.in_features; at += stage_elements<T>) {
            stream.wait();
#pragma unroll
            for (int u = 0; u < unroll; ++u) {
                const uint8_t* const stage = ring + slot * stage_bytes + u * 512 + lane * 16;
                const Piece<T> w0 = *reinterpret_cast<const Piece<T>*>(stage);
                const Piece<T> w1 = *reinterpret_cast<const Piece<T>*>(stage + unroll * 512);
#pragma unroll
                for (int r = 0; r < InputRows; ++r) {
                    const Piece<T> x =
                        *reinterpret_cast<const Piece<T>*>(xs + r * p.padded + at + (u * 32 + lane) * count);
#pragma unroll
                    for (int i = 0; i < count; ++i) {
                        sums[0][r] = fmaf(as_float(x.values[i]), as_float(w0.values[i]), sums[0][r]);
                        sums[1][r] = fmaf(as_float(x.values[i]), as_float(w1.values[i]), sums[1][r]);
                    }
                }
            }
            if (++slot == Stages) slot = 0;
            stream.fetch();
        }
#pragma unroll
        for (int r = 0; r < InputRows; ++r) {
            const float a = warp_sum(sums[0][r]), b = warp_sum(sums[1][r]);
            if (lane == r) finish_pair<T, Gated>(p, p.first_row + r, pair, a, b);
        }
    }
}

// The deepest ring of which two thread blocks fit beside each other, so that the next layer's weights are on their way
// while this one ends; else the deepest that fits at all.
int stages_for(const DeviceProperties& device, int64_t input_bytes) {
    const auto fits = [&](int stages, int64_t room) { return stages * warps * stage_bytes + input_bytes <= room; };
    constexpr int64_t reserved = 2048;  // the system's part of each block, and the partial sums
    for (const int stages : {6, 4})
        if (fits(stages, device.shared_memory_per_multiprocessor / 2 - reserved)) return stages;
    for (const int stages : {4, 2})
        if (fits(stages, device.shared_memory_per_block - reserved)) return stages;
    return 0;
}

template <class T, int InputRows, bool Gated, int Stages>
void start(const DeviceScope& scope, const LinearParams& p) {
    static std::atomic<uint64_t> allowed{0};
    const auto kernel = linear_rows<T, InputRows, Gated, Stages>;
    allow_shared_memory(scope, kernel, allowed, 1024);
    const int64_t pairs = Gated ? p.out_features : divide_up(p.out_features, 2);
    launch(scope, "linear", kernel,
           LaunchShape{std::min<int64_t>(scope.properties().multiprocessors, divide_up(pairs, warps)), 32 * warps,
                       static_cast<size_t>(warps * Stages * stage_bytes) +
                           static_cast<size_t>(p.padded) * InputRows * sizeof(T),
                       true},
           p);
}

template <class T, int InputRows>
void start(const DeviceScope& scope, const LinearParams& p, bool gated, int stages) {
    if (stages == 6) return gated ? start<T, InputRows, true, 6>(scope, p) : start<T, InputRows, false, 6>(scope, p);
    if (stages == 4) return gated ? start<T, InputRows, true, 4>(scope, p) : start<T, InputRows, false, 4>(scope, p);
    return gated ? start<T, InputRows, true, 2>(scope, p) : start<T, InputRows, false, 2>(scope, p);
}

}  // namespace

bool linear_reads_once(const mustafar_context& context, const mustafar_linear& a) {
    return a.rows == 1 || serves_tiles(DeviceScope(context).properties(), a);
}

void linear(const mustafar_context& context, const mustafar_linear& a) {
    const DeviceScope scope(context);
    if (serves_tiles(scope.properties(), a)) {
        linear_on_tiles(scope, a);
        return;
    }
    const int64_t parts = a.activation == MUSTAFAR_ACTIVATION_SILU_MUL ? 2 : 1;
    LinearParams p{};
    p.input = a.input;
    p.weight = a.weight;
    p.residual = a.residual;
    p.output = a.output;
    p.norm = a.norm;
    p.bias = a.bias;
    p.in_features = a.in_features;
    p.out_features = a.out_features;
    p.eps = a.eps;
    p.aligned = has_pieces(a.weight, a.in_features, a.dtype);
    p.input_aligned = has_pieces(a.input, a.in_features, a.dtype) && is_piece_aligned(a.norm);
    dispatch_dtype("linear", a.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        static_assert(row_stage<T> % stage_elements<T> == 0);
        p.padded = static_cast<int32_t>(divide_up(a.in_features, row_stage<T>) * row_stage<T>);
        const int64_t row_bytes = int64_t{p.padded} * static_cast<int64_t>(sizeof(T));
        if (a.rows == 1 && serves_one_row<T>(p)) {
            parts == 2 ? start_one_row<T, true>(scope, p) : start_one_row<T, false>(scope, p);
            return;
        }
        // Four rows at once, if they fit; the weight is read again for what is left.
        for (p.first_row = 0; p.first_row < a.rows;) {
            int rows = 4, stages = 0;
            for (; rows > 0; rows /= 4)
                if (rows <= a.rows - p.first_row && (stages = stages_for(scope.properties(), rows * row_bytes)) > 0)
                    break;
            if (rows == 0)
                fail(MUSTAFAR_STATUS_UNSUPPORTED,
                     "in_features: a row of %d elements does not fit into the %d bytes of shared memory of this device",
                     a.in_features, scope.properties().shared_memory_per_block);
            const bool gated = parts == 2;
            if (rows == 4)
                start<T, 4>(scope, p, gated, stages);
            else
                start<T, 1>(scope, p, gated, stages);
            p.first_row += rows;
        }
    });
}

}  // namespace mustafar::cuda
