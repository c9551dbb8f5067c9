// Writes balanced blocks in fragment order, for a thread block of 128 threads: a warp handles two units of each lane, which
// share the lane's words of positions.
#pragma once

#include "cuda/compress/balanced.cuh"
#include "cuda/compress/importance.cuh"

namespace mustafar::cuda {

// What follows from which of a group's four elements are kept (the first two, if there are more): bits 0 ... 15 the selector
// that makes the group's register of its elements, 16 ... 19 its positions, 20 and 21 its places that hold a value.
struct GroupTable {
    uint32_t of[16];
};

constexpr GroupTable make_group_table() {
    GroupTable table{};
    for (uint32_t kept = 0; kept < 16; ++kept) {
        uint32_t position[2] = {0, 0}, taken = 0;
        for (uint32_t m = 0; m < 4; ++m)
            if ((kept >> m & 1) != 0 && taken < 2) position[taken++] = m;
        // A single value goes to the first place, with the last position beside it, unless it has that position itself.
        const bool second_place = taken == 1 && position[0] == 3;
        const uint32_t first = taken == 0 || second_place ? 0 : position[0];
        const uint32_t second = taken == 0 ? 1 : taken == 1 ? 3 : position[1];
        const uint32_t places = taken == 2 ? 3 : second_place ? 2 : taken;
        table.of[kept] = (0x1010 + 0x22 * first + 0x2200 * second) | (first | second << 2) << 16 | places << 20;
    }
    return table;
}

__device__ constexpr GroupTable group_table = make_group_table();

// The elements of a unit: word [i][h] has elements 2h and 2h + 1 of group i.
struct UnitElements {
    uint32_t word[4][2];

    template <int HeadDim>
    __device__ __forceinline__ UnitElements(const uint16_t* rows, int stride, const BalancedUnit<HeadDim>& unit) {
        if (unit.keys) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const uint16_t* const row = rows + unit.token * stride;
                    word[i][h] = permute(row[unit.channel_of(i, 2 * h)], row[unit.channel_of(i, 2 * h + 1)], 0x5410u);
                }
        } else {
            uint32_t pair[4][2];  // of channels, by token
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                const uint16_t* const first = rows + unit.token_of(m) * stride + unit.channel;
                pair[m][0] = *reinterpret_cast<const uint32_t*>(first);
                pair[m][1] = *reinterpret_cast<const uint32_t*>(first + 2);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    word[i][h] = permute(pair[2 * h][i >> 1], pair[2 * h + 1][i >> 1], i & 1 ? 0x7632u : 0x5410u);
        }
    }
};

// The `kept` elements of largest magnitude. Ranks are a key and, below it, how early the element is; never 0.
template <class T>
__device__ __forceinline__ uint32_t largest_elements(const UnitElements& elements, int kept) {
    constexpr uint32_t nan_keys = RowPart<T, 128>::nan_key * 0x10001u;
    uint32_t rank[unit_elements], lowest[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t keys = __vminu2(elements.word[i][h] & 0x7fff7fffu, nan_keys);
            const int even = 8 * h + i, odd = even + 4;
            rank[even] = permute(keys, static_cast<uint32_t>(unit_elements - even), 0x1054u);
            rank[odd] = (keys & 0xffff0000u) | static_cast<uint32_t>(unit_elements - odd);
        }
    lowest_kept(rank, kept, lowest);
    return reaching_elements(rank, lowest);
}

// The `kept` elements of largest score. rows: where they come from, `stride` elements apart.
template <class T, int HeadDim>
__device__ __forceinline__ uint32_t largest_scores(const UnitElements& elements, const BalancedUnit<HeadDim>& unit,
                                                   const T* rows, int stride, const Importance<HeadDim>& importance,
                                                   int kept) {
    const float* const first = importance.from(unit.channel);
    const auto importance_of = [&](int bit) {
        return unit.keys ? first[4 * (bit & 3) + (bit >> 2) * Importance<HeadDim>::stride] : first[bit & 3];
    };
    uint32_t key[unit_elements];
#pragma unroll
    for (int bit = 0; bit < unit_elements; ++bit) {
        const T value = reinterpret_cast<const T*>(elements.word[bit & 3])[bit >> 2];
        key[bit] = score(as_float(value), importance_of(bit));
    }
    return largest_by_keys(key, kept, [&](int bit) {
        const int m = bit >> 2;
        return score(as_float(rows[unit.token_of(m) * stride + unit.channel_of(bit & 3, m)]), importance_of(bit));
    });
}

// Those that a bitmap has.
template <int HeadDim, class Bits>
__device__ __forceinline__ uint32_t elements_of_bitmap(const Bits& bits, const BalancedUnit<HeadDim>& unit) {
    uint32_t mask = 0;
    for (int i = 0; i < 4; ++i)
        for (int m = 0; m < 4; ++m) {
            const int channel = unit.channel_of(i, m);
            mask |= (bits[unit.token_of(m)][channel / 32] >> channel % 32 & 1) << (4 * i + m);
        }
    return mask;
}

// Of four neighbouring lanes lane t gets the words t of all of them, joined.
__device__ __forceinline__ uint32_t join_words(const uint32_t (&word)[4], int t) {
    uint32_t half[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const uint32_t sent = t & 2 ? word[j] : word[2 + j], own = t & 2 ? word[2 + j] : word[j];
        half[j] = own | __shfl_xor_sync(full_warp, sent, 2);
    }
    const uint32_t sent = t & 1 ? half[0] : half[1], own = t & 1 ? half[1] : half[0];
    return own | __shfl_xor_sync(full_warp, sent, 1);
}

// The positions of the two products of a pair of units, which the lanes of a quad put together.
template <int HeadDim>
class PairPositions {
public:
    // two: of a group, in a register of the first or the second product.
    __device__ __forceinline__ void add(int product, int reg, uint32_t two) {
        word_[2 * product + (reg >> 1)] |= two << 16 * (reg & 1);
    }
    // product: the first one's number.
    __device__ __forceinline__ void store(uint8_t* block, int lane, int product) {
#pragma unroll
        for (int j = 0; j < 4; ++j) word_[j] <<= 4 * (lane & 3);
        reinterpret_cast<uint32_t*>(block)[lane * BalancedGeometry<HeadDim>::words + product / 2] =
            join_words(word_, lane & 3);
    }

private:
    uint32_t word_[4] = {0, 0, 0, 0};
};

// Builds a block of tokens' rows, which lie `stride` elements apart, in shared memory with room for a dense block.
// choose(unit, elements): the mask of what is kept. The rows must be visible; ends with a barrier.
template <int HeadDim, bool Keys, class Choose>
__device__ __forceinline__ void write_balanced(uint8_t* block, int kept, const uint16_t* rows, int stride,
                                               Choose&& choose) {
    using Geometry = BalancedGeometry<HeadDim>;
    constexpr int pairs = Geometry::units / 2, plane_values = Geometry::plane_bytes / 2;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // The lanes' codes before they are put together, behind all that a block can have.
    auto* const codes = reinterpret_cast<uint16_t(*)[32]>(block + block_tokens * HeadDim * 2) - pairs;
    if (warp < pairs) {
        PairPositions<HeadDim> positions;
        uint32_t code = 0;
        uint32_t whole[2][4];  // registers of the two products
        uint8_t* const values = block + Geometry::value_start(kept) + lane * Geometry::plane_bytes;
        int number = 2 * warp * kept;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const BalancedUnit<HeadDim> unit(Keys, lane, 2 * warp + r);
            const UnitElements elements(rows, stride, unit);
            const uint32_t mask = choose(unit, elements);
            uint32_t places = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t group = group_table.of[mask >> 4 * i & 15];
                const uint32_t two = permute(elements.word[i][0], elements.word[i][1], group);
                const uint32_t taken = group >> 20;
                const int product = unit.product_of(i) & 1, reg = unit.register_of(i);
                positions.add(product, reg, group >> 16 & 15);
                places |= taken << 2 * i;
                whole[product][reg] = two & ((taken & 1 ? 0x0000ffffu : 0) | (taken & 2 ? 0xffff0000u : 0));
                if (kept < most_balanced)
#pragma unroll
                    for (int place = 0; place < 2; ++place)
                        if (taken >> place & 1) {
                            uint8_t* const at = values + number / plane_values * 32 * Geometry::plane_bytes;
                            reinterpret_cast<uint16_t*>(at)[number % plane_values] =
                                static_cast<uint16_t>(two >> 16 * place);
                            ++number;
                        }
            }
            if (kept < most_balanced) code |= uint32_t{balanced_codes.code[kept - fewest_balanced][places]} << 6 * r;
        }
        const int product = BalancedUnit<HeadDim>(Keys, lane, 2 * warp).product;
        positions.store(block, lane, product);
        if (kept == most_balanced) {
#pragma unroll
            for (int j = 0; j < 2; ++j)
                reinterpret_cast<uint4*>(block + Geometry::position_bytes)[(product + j) * 32 + lane] =
                    make_uint4(whole[j][0], whole[j][1], whole[j][2], whole[j][3]);
        } else {
            codes[warp][lane] = static_cast<uint16_t>(code);
        }
    }
    __syncthreads();
    if (kept == most_balanced) return;
    if (warp == 0) {
        uint64_t string = 0;
#pragma unroll
        for (int pair = 0; pair < pairs; ++pair) string |= uint64_t{codes[pair][lane]} << 12 * pair;
        using Low = std::conditional_t<HeadDim == 128, uint32_t, uint16_t>;
        using High = std::conditional_t<HeadDim == 128, uint16_t, uint8_t>;
        *reinterpret_cast<Low*>(block + low_code_byte<HeadDim>(lane)) = static_cast<Low>(string);
        *reinterpret_cast<High*>(block + high_code_byte<HeadDim>(lane)) = static_cast<High>(string >> 8 * sizeof(Low));
    }
    __syncthreads();
}

}  // namespace mustafar::cuda
