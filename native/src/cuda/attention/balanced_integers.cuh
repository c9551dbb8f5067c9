// Keys and values of integers of which two of each four are kept: sparse products, for IntegerDecoder.
#pragma once

#include "cuda/attention/balanced_operands.cuh"
#include "cuda/attention/integer_operands.cuh"

namespace mustafar::cuda {

template <int HeadDim>
struct BalancedIntegerKeys {
    using Rows = BalancedRows<HeadDim>;

    template <int Bits, int Tiles>
    static __device__ __forceinline__ void multiply(uint32_t block, int lane,
                                                    const QueryFragments<Rows::steps, Tiles>& query,
                                                    float (&score)[Tiles][2][4]) {
        using Geometry = BalancedIntegerGeometry<HeadDim, Bits>;
        constexpr int per_half = Geometry::operands / 2;
        const Positions<HeadDim> positions(block, lane);
        for_each_operand<Geometry>(block, lane, [&](int product, const uint32_t(&a)[4]) {
            key_product<__half>(query, score, product / per_half, product % per_half, a, positions.word[product / 2]);
        });
    }
};

template <int HeadDim>
struct BalancedIntegerValues {
    template <int Bits, int Tiles>
    static __device__ __forceinline__ void multiply(uint32_t block, int lane, const uint32_t (&probability)[Tiles][4],
                                                    float (&accumulator)[Tiles][HeadDim / 16][4]) {
        const Positions<HeadDim> positions(block, lane);
        for_each_operand<BalancedIntegerGeometry<HeadDim, Bits>>(block, lane, [&](int product, const uint32_t(&a)[4]) {
            value_product<__half>(probability, accumulator, product, a, positions.word[product / 2]);
        });
    }
};

}  // namespace mustafar::cuda
