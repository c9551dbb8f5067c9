// The body of the launchers of blocks of integers that are stored as operands.
#pragma once

#include "cuda/attention/fragment_launch.cuh"
#include "cuda/attention/integer_decoder.cuh"

namespace mustafar::cuda {

// Values: those of the keys' pattern.
template <class T, class Keys, class Values>
void launch_integers(const DeviceScope& scope, const AttentionParams& params, const AttentionPlan& plan,
                     int tile_count) {
    const Blocks &keys = params.keys, &values = params.values;
    const auto all = [](const Blocks& blocks) { return keeps_all(blocks.pattern); };
    if (all(keys) != all(values) || keys.value_bits != values.value_bits)
        launch_fragment<T, IntegerDecoder<Keys>>(scope, params, plan, tile_count);
    else if (keys.value_bits == 4)
        launch_fragment<T, IntegerDecoder<Keys, Values, 4>>(scope, params, plan, tile_count);
    else
        launch_fragment<T, IntegerDecoder<Keys, Values, 8>>(scope, params, plan, tile_count);
}

}  // namespace mustafar::cuda
