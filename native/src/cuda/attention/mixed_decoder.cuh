// How the fragment kernels read keys and values of different kinds: by the decoders of both, which the parameters choose while the kernel
// runs. A decoder with the interface of IntegerDecoder, whatever the values are stored as.
#pragma once

#include "cuda/attention/balanced_decoder.cuh"
#include "cuda/attention/decoder.cuh"
#include "cuda/attention/integer_decoder.cuh"
#include "cuda/attention/unstructured_integers.cuh"

namespace mustafar::cuda {

template <class T, int HeadDim>
struct MixedDecoder : AllIntegerRows<HeadDim> {
    using AllIntegerRows<HeadDim>::part_words;
    using AllIntegerRows<HeadDim>::steps;
    using Unstructured = Decoder<T, HeadDim>;
    using Balanced = BalancedDecoder<T, HeadDim>;
    using UnstructuredIntegers = UnstructuredIntegerDecoder<HeadDim>;
    using BalancedIntegers = IntegerDecoder<BalancedIntegerKeys<HeadDim>, BalancedIntegerValues<HeadDim>>;
    using AllIntegers = IntegerDecoder<AllIntegerKeys<HeadDim>, AllIntegerValues<HeadDim>>;
    static constexpr bool has_shared = true, integers = true, light = false, releases_keys_early = true;
    static constexpr int value_tiles = HeadDim / 16;
    static constexpr float key_unit = 0x1p-24f, value_unit = 0x1p-24f;
    static_assert(AllIntegers::unit == key_unit && BalancedIntegers::unit == key_unit &&
                  UnstructuredIntegers::key_unit == key_unit);

    using Shared = typename Balanced::Shared;
    static __device__ __forceinline__ void prepare(Shared& shared, const AttentionParams& p) {
        for (int i = threadIdx.x; i < Balanced::selectors; i += blockDim.x)
            if (kind_of(i < Balanced::selectors / 2 ? p.keys : p.values) == Kind::balanced)
                Balanced::prepare(shared, p, i);
    }

    const Shared& shared;
    const AttentionParams& p;
    const int lane, g, t;

    __device__ __forceinline__ MixedDecoder(const Shared& memory, const AttentionParams& params, int lane_index)
        : shared(memory), p(params), lane(lane_index), g(lane_index >> 2), t(lane_index & 3) {}

    __device__ __forceinline__ bool integer_values() const { return has_integers(p.values); }

    template <class, int Words>
    __device__ __forceinline__ int scale_block_query(const AttentionParams&, uint32_t (&words)[Words],
                                                     const ChannelScales<MixedDecoder>& scales) const {
        if (has_integers(p.keys)) return scale_query<T, MixedDecoder>(words, scales, p.keys.rotated(), t);
        return -24;  // native keys take queries as they are: this makes up for key_unit
    }
    template <int Words, class Set>
    __device__ __forceinline__ void block_query_fragments(const uint32_t (&words)[Words], Set&& set) const {
        visit(p.keys, [&](const auto& of) {
            using Of = std::decay_t<decltype(of)>;
            uint32_t part[Of::part_words];
            Of::from_quarters(words, part, t);
#pragma unroll
            for (int i = 0; i < steps; ++i) set(i, Of::query_fragment(part, i, t));
        });
    }

    template <int Tiles>
    __device__ __forceinline__ void keys(uint32_t block, const QueryFragments<steps, Tiles>& query,
                                         float (&score)[Tiles][2][4]) const {
        visit(p.keys, [&](const auto& of) { of.keys(block, query, score); });
    }
    template <int Tiles>
    __device__ __forceinline__ void values(uint32_t block, const uint32_t (&probability)[Tiles][4],
                                           float (&accumulator)[Tiles][value_tiles][4]) const {
        visit(p.values, [&](const auto& of) { of.values(block, probability, accumulator); });
    }

    // Ones of native keys.
    __device__ __forceinline__ void key_scales(uint32_t block, float (&scale)[2][2]) const {
        scale[0][0] = scale[0][1] = scale[1][0] = scale[1][1] = 1.0f;
        visit(p.keys, [&](const auto& of) {
            if constexpr (std::decay_t<decltype(of)>::integers) of.key_scales(block, scale);
        });
    }
    __device__ __forceinline__ void value_scales(uint32_t block, float (&scale)[2][2]) const {
        visit(p.values, [&](const auto& of) {
            if constexpr (std::decay_t<decltype(of)>::integers) of.value_scales(block, scale);
        });
    }

private:
    enum class Kind { unstructured, balanced, unstructured_integers, balanced_integers, all_integers };

    static __device__ __forceinline__ bool has_integers(const Blocks& blocks) {
        return blocks.value_bits < 16;
    }

    // Integers of other balanced patterns than 2:4 are stored as unstructured ones.
    static __device__ __forceinline__ Kind kind_of(const Blocks& blocks) {
        const bool balanced = is_balanced(blocks.pattern);
        if (!has_integers(blocks)) return balanced ? Kind::balanced : Kind::unstructured;
        if (keeps_all(blocks.pattern)) return Kind::all_integers;
        return balanced && balanced_kept(HeadDim, blocks.keep) == most_balanced ? Kind::balanced_integers
                                                                                : Kind::unstructured_integers;
    }

    // Calls use(decoder) with the one that reads the blocks.
    template <class Use>
    __device__ __forceinline__ void visit(const Blocks& blocks, Use&& use) const {
        switch (kind_of(blocks)) {
            case Kind::unstructured: return use(Unstructured({}, p, lane));
            case Kind::balanced: return use(Balanced(shared, p, lane));
            case Kind::unstructured_integers: return use(UnstructuredIntegers({}, p, lane));
            case Kind::balanced_integers: return use(BalancedIntegers({}, p, lane));
            case Kind::all_integers: return use(AllIntegers({}, p, lane));
        }
    }
};

}  // namespace mustafar::cuda
