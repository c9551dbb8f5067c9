// The fragment order of balanced blocks: operands of sparse matrix products (mma.sp.m16n8k32), stored as a warp's lanes
// read them. docs/format.md has the layout.
//
// A sparse product takes of each group of four along k two values and their positions. Operand A is 16 x 32, rows g and
// g + 8 and groups t and t + 4 in the registers of lane 4g + t: a0 = (g, t), a1 = (g + 8, t), a2 = (g, t + 4),
// a3 = (g + 8, t + 4). Positions must ascend, so a value that is alone in its group may have to stand in the second place:
// the other one is zero.
//   keys    product (a, s): rows are the tokens 16a ..., its eight groups those channels that make unit 4A + 2P + r of
//           lane (g, t) a unit of token 16A + g + 8r: the groups of products (A, 2P), (A, 2P + 1) in the row's registers
//   values  product i: rows g and g + 8 are the channels D/8 g + 2i and the next, the groups four consecutive tokens; unit
//           2P + h of a lane: registers of half h of the products 2P and 2P + 1
// A block: positions [lane][word], then for n < 8 codes of 6 bits for each unit, then the values.
//   positions  word w serves products 2w and 2w + 1. Lane 4g + 2s + h has for product 2w + s in nibble j group 4h + j of
//              row g, in nibble 4 + j that of row g + 8: first position | second position << 2.
//   codes      which places of the unit's four registers are taken: index among all such choices (BalancedCodes), unit u
//              in bits 6u ... of a lane's string, of which the low 2/3 and the high 1/3 are stored apart, by lane
//   values     n = 8: [product][lane][four registers]. n < 8: a lane's values in the order of unit, group, position,
//              [plane][lane][head_dim / 8 bytes]
#pragma once

#include "core/balanced.h"
#include "cuda/common/blocks.cuh"

namespace mustafar::cuda {

// Places of a unit's registers as 8 bits: bit 2i for the first place of group i, bit 2i + 1 for its second.
struct BalancedCodes {
    static constexpr int sizes = most_balanced - fewest_balanced;  // n = 5, 6, 7 have codes

    uint8_t code[sizes][256];  // of places
    uint8_t places[sizes][64];
    int count[sizes];
};

constexpr BalancedCodes make_balanced_codes() {
    BalancedCodes codes{};
    for (int size = 0; size < BalancedCodes::sizes; ++size)
        for (int mask = 0; mask < 256; ++mask) {
            int bits = 0;
            for (int i = 0; i < 8; ++i) bits += mask >> i & 1;
            if (bits != fewest_balanced + size) continue;
            codes.code[size][mask] = static_cast<uint8_t>(codes.count[size]);
            codes.places[size][codes.count[size]++] = static_cast<uint8_t>(mask);
        }
    return codes;
}

static_assert(make_balanced_codes().count[0] == 56 && make_balanced_codes().count[1] == 28);

// How the four registers of a unit come out of its n values. x, y: two selectors of byte permutations each. Groups 0 and 3
// choose from the first and the last two values and from zeros; groups 1 and 2 from the first and the last four, and where
// only one place is taken they get the value in both, of which z or w clears one.
struct UnitSelectors {
    uint32_t x, y, z, w;
};

constexpr UnitSelectors unit_selectors(int places) {
    int taken[4] = {}, count[4] = {};
    for (int i = 0; i < 4; ++i) {
        taken[i] = places >> 2 * i & 3;
        count[i] = (taken[i] & 1) + (taken[i] >> 1);
    }
    const auto edge = [](int mask, uint32_t value) {
        return mask == 0 ? 0x4444u : mask == 1 ? 0x4400u | value : mask == 2 ? value << 8 | 0x44u : 0x3210u;
    };
    const auto middle = [](int first, int values) {
        const auto number = [](int i) { return static_cast<uint32_t>(2 * i | (2 * i + 1) << 4); };
        return values == 0 ? 0u : number(first) | number(values == 2 ? first + 1 : first) << 8;
    };
    const auto mask = [](int taken) { return (taken & 1 ? 0x0000ffffu : 0u) | (taken & 2 ? 0xffff0000u : 0u); };
    return {edge(taken[0], 0x10u) | middle(count[0], count[1]) << 16,
            middle(4 - count[3] - count[2], count[2]) | edge(taken[3], 0x32u) << 16, mask(taken[1]), mask(taken[2])};
}

struct BalancedSelectors {
    UnitSelectors of[BalancedCodes::sizes][64];  // entries that no code names are zeros
};

constexpr BalancedSelectors make_balanced_selectors() {
    const BalancedCodes codes = make_balanced_codes();
    BalancedSelectors selectors{};
    for (int size = 0; size < BalancedCodes::sizes; ++size)
        for (int i = 0; i < codes.count[size]; ++i) selectors.of[size][i] = unit_selectors(codes.places[size][i]);
    return selectors;
}

template <int HeadDim>
struct BalancedGeometry {
    static constexpr int products = HeadDim / 16;                                  // for keys, and for values
    static constexpr int words = products / 2;                                     // of positions, for a lane
    static constexpr int units = HeadDim / 16;                                     // of a lane
    static constexpr int position_bytes = 128 * words;                             // as large as a bitmap
    static constexpr int low_code_bytes = units / 2, high_code_bytes = units / 4;  // of a lane
    static constexpr int code_bytes = 32 * (low_code_bytes + high_code_bytes);
    static constexpr int plane_bytes = HeadDim / 8;  // of a lane
    static_assert(code_bytes == balanced_code_bytes(HeadDim));

    static constexpr int value_start(int kept) { return position_bytes + (kept < most_balanced ? code_bytes : 0); }
};

// Where unit `unit` of a lane stands in the tensor and in the operands.
template <int HeadDim>
struct BalancedUnit {
    using Geometry = BalancedGeometry<HeadDim>;
    bool keys;
    int lane, token, channel, product, place;

    __device__ __forceinline__ BalancedUnit(bool of_keys, int lane_index, int unit) : keys(of_keys), lane(lane_index) {
        const int g = lane >> 2, t = lane & 3;
        if (keys) {
            constexpr int half = Geometry::units / 2;  // of 16 tokens
            const int a = unit / half, pair = unit % half / 2, r = unit & 1;
            token = 16 * a + g + 8 * r;
            channel = key_unit_channel(HeadDim == 128 ? 4 * (t & 1) + 2 * pair + (t >> 1) : t);
            product = a * (Geometry::products / 2) + 2 * pair;
            place = r;
        } else {
            const int pair = unit / 2, h = unit & 1;
            token = 4 * (t + 4 * h);
            channel = HeadDim / 8 * g + 4 * pair;
            product = 2 * pair;
            place = 2 * h;
        }
    }

    // Element m of group i.
    __device__ __forceinline__ int token_of(int m) const { return keys ? token : token + m; }
    __device__ __forceinline__ int channel_of(int i, int m) const {
        return keys ? channel + 4 * i + HeadDim / 4 * m : channel + i;
    }
    // Product and register of group i.
    __device__ __forceinline__ int product_of(int i) const { return product + (keys ? i & 1 : i >> 1); }
    __device__ __forceinline__ int register_of(int i) const { return place + (keys ? i & 2 : i & 1); }

    // Where group i's positions stand: byte of the 32-bit word, and bit in it.
    __device__ __forceinline__ int position_byte(int i) const {
        const int owner = (lane & ~3) + 2 * (product_of(i) & 1) + (register_of(i) >> 1);
        return 4 * (owner * Geometry::words + (product_of(i) >> 1));
    }
    __device__ __forceinline__ int position_bit(int i) const { return 4 * ((lane & 3) + 4 * (register_of(i) & 1)); }

    // Byte of value `number` of the unit, which is in place `second` of group i, behind the block's start.
    __device__ __forceinline__ int value_byte(int kept, int unit, int number, int i, int second) const {
        if (kept == most_balanced)
            return Geometry::position_bytes + ((product_of(i) * 32 + lane) * 4 + register_of(i)) * 4 + 2 * second;
        const int byte = 2 * (unit * kept + number);
        return Geometry::value_start(kept) + (byte / Geometry::plane_bytes * 32 + lane) * Geometry::plane_bytes +
               byte % Geometry::plane_bytes;
    }
};

}  // namespace mustafar::cuda
