// Blocks of integers of which two of each four are kept, in fragment order, for a thread block of 128 threads: a warp handles
// two units of each lane, as in balanced_writer.cuh.
#pragma once

#include "cuda/compress/balanced_writer.cuh"
#include "cuda/compress/integer_writer.cuh"

namespace mustafar::cuda {

// This thread's units of a block, and which elements of them are kept: masks as in balanced_writer.cuh.
template <int HeadDim, bool Keys>
class OwnUnits {
public:
    using Geometry = BalancedGeometry<HeadDim>;
    static constexpr int pairs = Geometry::units / 2;

    // rows: `stride` elements apart, visible. bits: [32][words] of a bitmap, all zero; the units' bits are set.
    // choose(unit, elements): the mask of what is kept.
    template <class Bits, class Choose>
    __device__ __forceinline__ OwnUnits(const uint16_t* rows, int stride, Bits& bits, Choose&& choose)
        : lane_(static_cast<int>(threadIdx.x) & 31), warp_(static_cast<int>(threadIdx.x) >> 5) {
        if (warp_ >= pairs) return;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const BalancedUnit<HeadDim> own = unit(r);
            mask_[r] = choose(own, UnitElements(rows, stride, own));
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                const int first = own.channel_of(0, m);
                atomicOr(&bits[own.token_of(m)][first / 32], channel_bits(mask_[r], m, Keys) << first % 32);
            }
        }
    }

    // Those that a bitmap has.
    template <class Bits>
    __device__ __forceinline__ explicit OwnUnits(const Bits& bits)
        : lane_(static_cast<int>(threadIdx.x) & 31), warp_(static_cast<int>(threadIdx.x) >> 5) {
        if (warp_ >= pairs) return;
#pragma unroll
        for (int r = 0; r < 2; ++r) mask_[r] = elements_of_bitmap(bits, unit(r));
    }

    // Writes positions and operands. rows: SignedByte{Bits}, `stride` bytes apart, visible.
    template <int Bits>
    __device__ __forceinline__ void write(uint8_t* image, const uint8_t* rows, int stride) const {
        using Words = BalancedIntegerGeometry<HeadDim, Bits>;
        using Word = typename Words::Word;
        if (warp_ >= pairs) return;
        PairPositions<HeadDim> positions;
        uint32_t word[2][Word::words] = {};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const BalancedUnit<HeadDim> own = unit(r);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t group = group_table.of[mask_[r] >> 4 * i & 15];
                const int product = own.product_of(i) & 1, reg = own.register_of(i);
                positions.add(product, reg, group >> 16 & 15);
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int m = group >> (16 + 2 * e) & 3;
                    word[product][reg * Word::words / 4] |=
                        Word::pack(reg, e, rows[own.token_of(m) * stride + own.channel_of(i, m)]);
                }
            }
        }
        const int product = unit(0).product;
        positions.store(image, lane_, product);
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int w = 0; w < Word::words; ++w)
                *reinterpret_cast<uint32_t*>(image + Words::word_byte(product + j, lane_, w)) = word[j][w];
    }

private:
    __device__ __forceinline__ BalancedUnit<HeadDim> unit(int r) const {
        return BalancedUnit<HeadDim>(Keys, lane_, 2 * warp_ + r);
    }

    const int lane_, warp_;
    uint32_t mask_[2] = {0, 0};
};

// Calls place(token, channel, integer) for what a block keeps.
template <int HeadDim, int Bits, class Place>
__device__ __forceinline__ void read_balanced_integers(const uint8_t* block, bool keys, Place&& place) {
    using Words = BalancedIntegerGeometry<HeadDim, Bits>;
    using Word = typename Words::Word;
    for_own_units<HeadDim>(keys, [&](int, const BalancedUnit<HeadDim>& unit) {
        for (int i = 0; i < 4; ++i) {
            const uint32_t positions =
                *reinterpret_cast<const uint32_t*>(block + unit.position_byte(i)) >> unit.position_bit(i);
            const int reg = unit.register_of(i);
            const uint32_t word = *reinterpret_cast<const uint32_t*>(
                block + Words::word_byte(unit.product_of(i), unit.lane, reg * Word::words / 4));
            for (int e = 0; e < 2; ++e) {
                const int m = positions >> 2 * e & 3;
                place(unit.token_of(m), unit.channel_of(i, m), Word::unpack(word, reg, e));
            }
        }
    });
}

}  // namespace mustafar::cuda
