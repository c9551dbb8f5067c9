// How the fragment kernels read balanced blocks: sparse matrix products straight from the block; common/balanced.cuh has
// the layout. The same interface as Decoder.
#pragma once

#include "cuda/attention/balanced_operands.cuh"
#include "cuda/attention/params.h"

namespace mustafar::cuda {

__constant__ constexpr BalancedSelectors balanced_selectors = make_balanced_selectors();

// A lane's values of a block with Kept of 16, and its units' registers.
template <int HeadDim, int Kept>
class UnitExpander {
public:
    using Geometry = BalancedGeometry<HeadDim>;

    // table: shared-memory address of the selectors for Kept.
    __device__ __forceinline__ UnitExpander(uint32_t block, uint32_t table, int lane) : table_(table) {
        const uint32_t codes = block + Geometry::position_bytes;
        const uint32_t low = codes + lane * Geometry::low_code_bytes;
        const uint32_t high = codes + 32 * Geometry::low_code_bytes + lane * Geometry::high_code_bytes;
        const uint32_t values = codes + Geometry::code_bytes + lane * Geometry::plane_bytes;
        if constexpr (HeadDim == 128) {
            code_[0] = load_shared_u32(low);
            code_[1] = load_shared_u16(high);
#pragma unroll
            for (int plane = 0; plane < Kept; ++plane) {
                const uint4 v = load_shared_u128(values + plane * 512);
                word_[4 * plane] = v.x, word_[4 * plane + 1] = v.y, word_[4 * plane + 2] = v.z,
                          word_[4 * plane + 3] = v.w;
            }
        } else {
            code_[0] = load_shared_u16(low) | load_shared_u8(high) << 16;
            code_[1] = 0;
#pragma unroll
            for (int plane = 0; plane < Kept; ++plane) {
                const uint2 v = load_shared_u64(values + plane * 256);
                word_[2 * plane] = v.x, word_[2 * plane + 1] = v.y;
            }
        }
    }

    __device__ __forceinline__ void expand(int unit, uint32_t (&group)[4]) const {
        const uint4 s = load_shared_u128(table_ + selector_offset(unit));
        const int first = Kept * unit, last = first + Kept;
        const uint32_t a = pair(first), b = pair(first + 2), c = pair(last - 4), d = pair(last - 2);
        group[0] = permute(a, 0u, s.x);
        group[1] = permute(a, b, s.x >> 16) & s.z;
        group[2] = permute(c, d, s.y) & s.w;
        group[3] = permute(d, 0u, s.y >> 16);
    }

private:
    // Code of a unit times 16.
    __device__ __forceinline__ uint32_t selector_offset(int unit) const {
        const int bit = 6 * unit - 4;
        const uint32_t moved = bit < 0     ? code_[0] << 4
                               : bit <= 22 ? code_[0] >> bit
                               : bit >= 32 ? code_[1] >> (bit - 32)
                                           : __funnelshift_r(code_[0], code_[1], bit);
        return moved & 0x3f0u;
    }
    __device__ __forceinline__ uint32_t pair(int number) const {
        return number & 1 ? permute(word_[number / 2], word_[number / 2 + 1], 0x5432u) : word_[number / 2];
    }

    uint32_t table_;
    uint32_t code_[2];
    uint32_t word_[Kept * HeadDim / 32];
};

template <class T, int HeadDim>
struct BalancedDecoder : BalancedRows<HeadDim> {
    using Geometry = BalancedGeometry<HeadDim>;
    using BalancedRows<HeadDim>::steps;
    static constexpr bool has_shared = true, integers = false, light = false;
    static constexpr int value_tiles = Geometry::products;

    struct Shared {
        uint4 selectors[2][64];  // keys, values
    };
    // All threads of the block take part; a barrier has to follow.
    static __device__ __forceinline__ void prepare(Shared& shared, const AttentionParams& p) {
        for (int i = threadIdx.x; i < selectors; i += blockDim.x) prepare(shared, p, i);
    }
    // Selector i of all.
    static constexpr int selectors = 128;
    static __device__ __forceinline__ void prepare(Shared& shared, const AttentionParams& p, int i) {
        const int kept = balanced_kept(HeadDim, (i < 64 ? p.keys : p.values).keep);
        if (kept == most_balanced) return;
        const UnitSelectors& s = balanced_selectors.of[kept - fewest_balanced][i & 63];
        shared.selectors[i >> 6][i & 63] = make_uint4(s.x, s.y, s.z, s.w);
    }

    const int lane, g, t;
    const int keys_kept, values_kept;
    const uint32_t key_table, value_table;

    __device__ __forceinline__ BalancedDecoder(const Shared& shared, const AttentionParams& p, int lane_index)
        : lane(lane_index), g(lane_index >> 2), t(lane_index & 3), keys_kept(balanced_kept(HeadDim, p.keys.keep)),
          values_kept(balanced_kept(HeadDim, p.values.keep)), key_table(shared_address(shared.selectors[0])),
          value_table(shared_address(shared.selectors[1])) {}

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        switch (keys_kept) {
            case 5: return keys_of<5>(block, query, score);
            case 6: return keys_of<6>(block, query, score);
            case 7: return keys_of<7>(block, query, score);
            default: return whole_keys(block, query, score);
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        switch (values_kept) {
            case 5: return values_of<5>(block, probability, accumulator);
            case 6: return values_of<6>(block, probability, accumulator);
            case 7: return values_of<7>(block, probability, accumulator);
            default: return whole_values(block, probability, accumulator);
        }
    }

private:
    template <int Kept, int Tiles>
    __device__ __forceinline__ void keys_of(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                            float (&score)[Tiles][2][4]) const {
        constexpr int per_half = Geometry::products / 2, pairs = per_half / 2;
        const Positions<HeadDim> positions(block, lane);
        const UnitExpander<HeadDim, Kept> units(block, key_table, lane);
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int pair = 0; pair < pairs; ++pair) {
                uint32_t x[4], y[4];
                units.expand(2 * (a * pairs + pair), x);
                units.expand(2 * (a * pairs + pair) + 1, y);
                const uint32_t word = positions.word[a * pairs + pair];
                key_product<T>(query, score, a, 2 * pair, {x[0], y[0], x[2], y[2]}, word);
                key_product<T>(query, score, a, 2 * pair + 1, {x[1], y[1], x[3], y[3]}, word);
            }
    }

    template <int Kept, int Tiles>
    __device__ __forceinline__ void values_of(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                              float (&accumulator)[Tiles][value_tiles][4]) const {
        const Positions<HeadDim> positions(block, lane);
        const UnitExpander<HeadDim, Kept> units(block, value_table, lane);
#pragma unroll
        for (int pair = 0; pair < Geometry::words; ++pair) {
            uint32_t x[4], y[4];
            units.expand(2 * pair, x);
            units.expand(2 * pair + 1, y);
            const uint32_t word = positions.word[pair];
            value_product<T>(probability, accumulator, 2 * pair, {x[0], x[1], y[0], y[1]}, word);
            value_product<T>(probability, accumulator, 2 * pair + 1, {x[2], x[3], y[2], y[3]}, word);
        }
    }

    // 2:4 blocks hold the registers themselves.
    __device__ __forceinline__ uint4 registers(uint32_t block, int product) const {
        return load_shared_u128(block + Geometry::position_bytes + 512 * product + 16 * lane);
    }

    template <int Tiles>
    __device__ __forceinline__ void whole_keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                               float (&score)[Tiles][2][4]) const {
        constexpr int per_half = Geometry::products / 2;
        const Positions<HeadDim> positions(block, lane);
#pragma unroll
        for (int i = 0; i < Geometry::products; i += 2) {
            const uint4 x = registers(block, i), y = registers(block, i + 1);
            const uint32_t word = positions.word[i / 2];
            key_product<T>(query, score, i / per_half, i % per_half, {x.x, x.y, x.z, x.w}, word);
            key_product<T>(query, score, i / per_half, i % per_half + 1, {y.x, y.y, y.z, y.w}, word);
        }
    }

    template <int Tiles>
    __device__ __forceinline__ void whole_values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                                 float (&accumulator)[Tiles][value_tiles][4]) const {
        const Positions<HeadDim> positions(block, lane);
#pragma unroll
        for (int i = 0; i < Geometry::products; i += 2) {
            const uint4 x = registers(block, i), y = registers(block, i + 1);
            const uint32_t word = positions.word[i / 2];
            value_product<T>(probability, accumulator, i, {x.x, x.y, x.z, x.w}, word);
            value_product<T>(probability, accumulator, i + 1, {y.x, y.y, y.z, y.w}, word);
        }
    }
};

}  // namespace mustafar::cuda
