// A linear layer for 2 to 32 rows of 16-bit input on tensor cores, which reads the weight once.
//
// Grid: a thread block a multiprocessor, which takes tiles of the weight in turn. A tile is two boxes of up to 64 rows: neighbours, or
// rows of the gate and the same of up. Thread blocks of a cluster share one tile: each takes a part of the input features, and sums up a
// part of the outputs. One warp copies chunks of 64 features of weight and input to a ring in shared memory, the weight's first ones
// before the previous grid has ended. Eight warps multiply: four of them have 32 rows of the tile each in every other chunk, with the
// input's rows along n.
#pragma once

#include <cuda.h>

#include "cuda/common/ptx.cuh"
#include "cuda/step/linear_pairs.cuh"

namespace mustafar::cuda {

constexpr int tile_warps = 8;  // that multiply
constexpr int tile_threads = 32 * (tile_warps + 1);
constexpr int tile_chunk = 64;  // input features
constexpr int max_box_rows = 64;
constexpr int max_tile_cluster = 4;
constexpr int tile_pitch = 2 * max_box_rows + 4;  // floats, so that the lanes' stores are spread over the banks

constexpr int tile_stage_bytes(int box_rows, int input_rows) {
    return (2 * box_rows + input_rows) * tile_chunk * 2;
}
constexpr int tile_sum_bytes(int input_rows) {
    return input_rows * tile_pitch * 4;
}

struct LinearTilesParams {
    CUtensorMap weight_map, input_map;
    LinearParams linear;
    // box_rows: a multiple of 8.
    int32_t rows, box_rows, tiles, chunks, stages, cluster;
};

// The 16-byte piece of a row of 128 bytes, as a copy with swizzling leaves it.
__device__ __forceinline__ uint32_t swizzled(uint32_t tile, int row, int piece) {
    return tile + row * 128 + ((piece ^ (row & 7)) << 4);
}

// The place in the ring of chunk number `chunk`, counted over all tiles of the thread block, and the parity of its barriers.
class RingPlace {
public:
    __device__ __forceinline__ RingPlace(int stages, int chunk) : stages_(stages), slot_(chunk) {}
    __device__ __forceinline__ void advance(int chunks) {
        slot_ += chunks;
        if (slot_ >= stages_) {
            slot_ -= stages_;
            parity_ ^= 1;
        }
    }
    __device__ __forceinline__ int slot() const { return slot_; }
    __device__ __forceinline__ uint32_t parity() const { return parity_; }

private:
    int stages_, slot_;
    uint32_t parity_ = 0;
};

// The sums of 32 rows of a tile.
template <class T, int InputRows>
class TileWarp {
public:
    __device__ __forceinline__ TileWarp(int quarter, int box_rows, int lane)
        : box_(quarter / 2), row_(quarter % 2 * 32), box_rows_(box_rows), lane_(lane) {}

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < columns; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum_[m][n][i] = 0.0f;
    }

    // One chunk, whose weight is followed by the input.
    __device__ __forceinline__ void multiply(uint32_t stage) {
        const uint32_t weight = stage + (box_ * box_rows_ + row_) * 128, input = stage + 2 * box_rows_ * 128;
#pragma unroll
        for (int k = 0; k < tile_chunk / 16; ++k) {
            uint32_t a[2][4], b[columns][2];
#pragma unroll
            for (int m = 0; m < 2; ++m)
                if (has(m)) load_matrices(swizzled(weight, 16 * m + (lane_ & 15), 2 * k + (lane_ >> 4)), a[m]);
            if constexpr (columns == 1) {
                load_matrices(swizzled(input, lane_ & 7, 2 * k + (lane_ >> 3 & 1)), b[0]);
            } else {
#pragma unroll
                for (int n = 0; n < columns; n += 2) {
                    uint32_t both[4];
                    load_matrices(swizzled(input, 8 * n + (lane_ & 7) + (lane_ >> 4 << 3), 2 * k + (lane_ >> 3 & 1)),
                                  both);
                    b[n][0] = both[0], b[n][1] = both[1], b[n + 1][0] = both[2], b[n + 1][1] = both[3];
                }
            }
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < columns; ++n)
                    if (has(m)) mma_16816<T>(sum_[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[n][0], b[n][1]);
        }
    }

    // Every sum and its place: action(sum, row of the input, row of the tile as if boxes had all rows that they may have).
    template <class Action>
    __device__ __forceinline__ void each(Action&& action) {
        const int g = lane_ >> 2, t = lane_ & 3;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < columns; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    action(sum_[m][n][i], 8 * n + 2 * t + (i & 1),
                           box_ * max_box_rows + row_ + 16 * m + 8 * (i >> 1) + g);
    }

private:
    static constexpr int columns = InputRows / 8;

    // Whether the box reaches so far.
    __device__ __forceinline__ bool has(int m) const {
        return row_ + 16 * m < box_rows_;
    }

    int box_, row_, box_rows_, lane_;
    float sum_[2][columns][4];
};

// Copies of all chunks of a thread block, by one lane.
template <bool Gated>
class TileCopies {
public:
    __device__ __forceinline__ TileCopies(const LinearTilesParams& p, uint32_t ring, int stage_bytes)
        : p_(p), ring_(ring), stage_bytes_(stage_bytes), policy_(evict_first_policy()) {}

    __device__ __forceinline__ void weight(int tile, int chunk, int slot, uint32_t full) const {
        expect_bytes(full, stage_bytes_);
        const uint32_t target = ring_ + slot * stage_bytes_;
        const int first = tile * p_.box_rows * (Gated ? 1 : 2),
                  second = first + (Gated ? p_.linear.out_features : p_.box_rows);
        copy_box(target, &p_.weight_map, chunk * tile_chunk, first, full, policy_);
        copy_box(target + p_.box_rows * 128, &p_.weight_map, chunk * tile_chunk, second, full, policy_);
    }
    __device__ __forceinline__ void input(int chunk, int slot, uint32_t full) const {
        copy_box(ring_ + slot * stage_bytes_ + 2 * p_.box_rows * 128, &p_.input_map, chunk * tile_chunk, 0, full);
    }

private:
    const LinearTilesParams& p_;
    uint32_t ring_;
    int stage_bytes_;
    uint64_t policy_;
};

__device__ __forceinline__ void add_quad(float (&sum)[4], const float* more) {
    const float4 quad = *reinterpret_cast<const float4*>(more);
    sum[0] += quad.x, sum[1] += quad.y, sum[2] += quad.z, sum[3] += quad.w;
}

template <class T, int InputRows, bool Gated>
__global__ void __launch_bounds__(tile_threads, 1) linear_tiles(const __grid_constant__ LinearTilesParams p) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int stage_bytes = tile_stage_bytes(p.box_rows, InputRows), outputs = p.box_rows * (Gated ? 1 : 2);
    float* const sums = reinterpret_cast<float*>(memory + p.stages * stage_bytes);
    const uint32_t ring = shared_address(memory);
    // mbarriers of the stages: whether one is full, whether it is empty again
    const uint32_t full = ring + p.stages * stage_bytes + tile_sum_bytes(InputRows), empty = full + 8 * p.stages;
    const int rank = static_cast<int>(blockIdx.x) % p.cluster, first_tile = static_cast<int>(blockIdx.x) / p.cluster,
              step = static_cast<int>(gridDim.x) / p.cluster;
    const int begin = p.chunks * rank / p.cluster, end = p.chunks * (rank + 1) / p.cluster;
    if (static_cast<int>(threadIdx.x) < p.stages) {
        start_barrier(full + 8 * threadIdx.x);
        start_barrier(empty + 8 * threadIdx.x, tile_warps / 2);
    }
    __syncthreads();
    let_next_grid_start();

    if (warp == tile_warps) {
        if (lane == 0) {
            const TileCopies<Gated> copies(p, ring, stage_bytes);
            int ahead = 0;  // chunks whose weight is on its way
            for (int tile = first_tile; tile < p.tiles; tile += step)
                for (int chunk = begin; chunk < end && ahead < p.stages; ++chunk, ++ahead)
                    copies.weight(tile, chunk, ahead, full + 8 * ahead);
            wait_for_previous_grid();
            RingPlace place(p.stages, 0);
            for (int tile = first_tile; tile < p.tiles; tile += step)
                for (int chunk = begin; chunk < end; ++chunk, --ahead, place.advance(1)) {
                    const uint32_t filled = full + 8 * place.slot();
                    if (ahead <= 0) {
                        wait_for_bytes(empty + 8 * place.slot(), place.parity() ^ 1);
                        copies.weight(tile, chunk, place.slot(), filled);
                    }
                    copies.input(chunk, place.slot(), filled);
                }
        }
        __syncwarp();
        if (p.cluster > 1) cluster_barrier(), cluster_barrier();  // where its other warps meet
        return;
    }

    wait_for_previous_grid();
    const int team = warp / (tile_warps / 2);
    TileWarp<T, InputRows> own(warp % (tile_warps / 2), p.box_rows, lane);
    RingPlace place(p.stages, team);
    int turn = team;  // chunks until this warp's next one
    for (int tile = first_tile; tile < p.tiles; tile += step) {
        own.clear();
        int chunk = begin + turn;
        for (; chunk < end; chunk += 2) {
            wait_for_bytes(full + 8 * place.slot(), place.parity());
            own.multiply(ring + place.slot() * stage_bytes);
            __syncwarp();
            if (lane == 0) arrive(empty + 8 * place.slot());
            place.advance(2);
        }
        turn = chunk - end;
        // The two teams, then the thread blocks of the cluster.
        if (team == 1) own.each([&](float sum, int n, int row) { sums[n * tile_pitch + row] = sum; });
        sync_warps<tile_warps>();
        if (team == 0) own.each([&](float sum, int n, int row) { sums[n * tile_pitch + row] += sum; });
        if (p.cluster > 1)
            cluster_barrier();
        else
            sync_warps<tile_warps>();
        const int share = outputs / p.cluster, quads = share / 4;
        for (int e = threadIdx.x; e < p.rows * quads; e += 32 * tile_warps) {
            const int n = e / quads, column = rank * share + e % quads * 4;
            float first[4] = {}, up[4] = {};
            for (int other = 0; other < p.cluster; ++other) {
                const float* const theirs = cluster_pointer(sums, other) + n * tile_pitch;
                add_quad(first, theirs + column + (column < p.box_rows ? 0 : max_box_rows - p.box_rows));
                if (Gated) add_quad(up, theirs + max_box_rows + column);
            }
            finish_quad<T, Gated>(p.linear, n, tile * outputs + column, first, up);
        }
        if (p.cluster > 1)
            cluster_barrier();
        else
            sync_warps<tile_warps>();
    }
}

}  // namespace mustafar::cuda
