// Expands bitmap words whose values lie in fragment order into tensor-core operands.
//
// A unit is two words per lane. Bit 8m + i of a lane's word is element m of step i; the values of a word's 32 lanes are
// stored by step, then lane, then element, only those whose bit is set. So the values that the warp reads in one step are
// neighbours, and a lane's first one stands behind
//     all values of earlier steps + those of this step in earlier lanes.
// These prefix sums, and the addresses of all four elements, come out of integer tensor-core products rather than
// shuffles and adds. With lane = 4g + t:
//   1. step masks & bits              -> how many values the quad g has in step i
//   2. lower triangle x those         -> P = values of step i in quads before g, T = values of step i in the warp
//   3. P, T x (this step - the last)  -> where the quad's values of this step start, from where those of the last did
//   4. bits x elements before this one in the quad, added to 3 -> byte addresses
// Bytes stay at 128 or less. A value takes two bytes, or one.
#pragma once

#include "cuda/common/ptx.cuh"

namespace mustafar::cuda {

// Operands that depend on the lane only.
template <int ValueBytes>
struct ExpandConstants {
    static_assert(ValueBytes == 1 || ValueBytes == 2);
    // Of two bytes: the bits of odd steps stay one place too high, which saves their shift.
    static constexpr int parity(int step) { return ValueBytes == 2 ? step & 1 : 0; }

    uint32_t step_mask;  // product 1, A: row i selects the bits of step i
    uint32_t triangle;   // product 2, A: row g sums the quads before g, and 256 x all
    uint32_t step[8];    // product 3, B
    // Product 4, B: [parity][elements 0, 1 or 2, 3], column 2t + e for element e of lane t.
    uint32_t quad[ValueBytes][2];

    __device__ __forceinline__ explicit ExpandConstants(int lane) {
        const int g = lane >> 2, t = lane & 3;
        step_mask = pinned(0x01010101u << g);
        triangle = pinned(0x80808080u + (2 * t < g ? 1u : 0u) + (2 * t + 1 < g ? 0x100u : 0u));
#pragma unroll
        for (int i = 0; i < 8; ++i) step[i] = pinned(step_weights(2 * t, i) | step_weights(2 * t + 1, i) << 16);
        const int column_lane = g >> 1, e = g & 1;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t before = (1u << 8 * (2 * half + e)) - 1u;
            constexpr uint32_t every = ValueBytes * 0x01010101u;
            const uint32_t weight = t < column_lane ? every : t == column_lane ? before & every : 0u;
#pragma unroll
            for (int i = 0; i < ValueBytes; ++i) quad[i][half] = pinned(weight >> i);
        }
    }

private:
    // Weights of P (low byte) and T of step k in the move from step i - 1 to step i.
    static __device__ __forceinline__ uint32_t step_weights(int k, int i) {
        return k == i ? ValueBytes : k == i - 1 ? ValueBytes << 8 | (0x100 - ValueBytes) : 0u;
    }
};

// One unit: prepares the prefix sums, then hands out the steps 0 ... 7 in order.
template <int ValueBytes>
class Expand {
public:
    using Constants = ExpandConstants<ValueBytes>;

    // base0, base1: shared-memory addresses of the first value of each word.
    __device__ __forceinline__ Expand(const Constants& constants, uint32_t word0, uint32_t word1, uint32_t base0,
                                      uint32_t base1)
        : constants_(constants), word_{word0, word1}, quad_{base0, base0, base1, base1} {
        const uint32_t zero[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            // Rows 8 ... 15 of these two are to spare: whatever stands beside their A operand makes them.
            uint32_t count[4], sums[4];
            mma_bits(count, constants.step_mask, constants.step[0], word_[i]);
            mma_u8(sums, constants.triangle, constants.step[1], permute(count[0], count[1], 0x4040), zero);
            prefix_[i] = permute(sums[0], sums[1], 0x5410);
        }
    }

    // Fills the pipeline: the values of step 0 are on their way, the addresses of step 1 known.
    __device__ __forceinline__ void start() {
        locate(0);
        load();
        locate(1);
    }

    // Elements 0, 1 (x) and 2, 3 (y) of both words in the next step, absent ones zero; a value of one byte stands in both
    // bytes of its half. `step`: a compile-time constant.
    __device__ __forceinline__ void next(int step, uint2& first, uint2& second) {
        const uint32_t bits0 = loaded_bits_[0], bits1 = loaded_bits_[1];
        uint32_t x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = value_[i];
        if (step < 7) load();
        first = select(x[0], x[1], x[4], x[5], bits0, step);
        second = select(x[2], x[3], x[6], x[7], bits1, step);
        if (step < 6) locate(step + 2);
    }

private:
    __device__ __forceinline__ void locate(int step) {
        const int parity = Constants::parity(step), shift = step - parity;
        const uint32_t mask = 0x01010101u << parity;
        bits_[0] = (word_[0] >> shift) & mask;
        bits_[1] = (word_[1] >> shift) & mask;
        mma_u8(quad_, prefix_[0], prefix_[1], constants_.step[step], quad_);
        mma_u8(low_, bits_[0], bits_[1], constants_.quad[parity][0], quad_);
        mma_u8(high_, bits_[0], bits_[1], constants_.quad[parity][1], quad_);
    }

    __device__ __forceinline__ void load() {
#pragma unroll
        for (int i = 0; i < 4; ++i) value_[i] = load_value(low_[i]);
#pragma unroll
        for (int i = 0; i < 4; ++i) value_[4 + i] = load_value(high_[i]);
        loaded_bits_[0] = bits_[0], loaded_bits_[1] = bits_[1];
    }

    static __device__ __forceinline__ uint32_t load_value(uint32_t address) {
        return ValueBytes == 2 ? load_shared_u16(address) : load_shared_u8(address);
    }

    // Loads leave zeros in the rest of a register, which serve absent elements: nibbles 10 and 54 of a selector take a loaded
    // value of 16 bits, 32 and 76 the zeros beside it; 00 and 44 take one of 8 bits twice, 11 and 55 zeros.
    static __device__ __forceinline__ uint2 select(uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3, uint32_t bits,
                                                   int step) {
        const uint32_t selector =
            ValueBytes == 2 ? 0x76327632u - (0x22u >> Constants::parity(step)) * bits : 0x55115511u - 0x11u * bits;
        return {permute(x0, x1, selector), permute(x2, x3, selector >> 16)};
    }

    const Constants& constants_;
    uint32_t word_[2];
    uint32_t quad_[4];  // where the values of this lane's quad start in the last step handed out, for both words twice
    uint32_t prefix_[2];
    uint32_t bits_[2], low_[4], high_[4];  // of the step located last: bits, addresses of elements 0, 1 and 2, 3
    uint32_t loaded_bits_[2], value_[8];   // of the step loaded last: bits, values where those addresses point
};

}  // namespace mustafar::cuda
