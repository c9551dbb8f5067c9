// Launchers of the fragment kernels: one for each way to read blocks, dtype and head_dim. Mixed ones read keys and values of any two kinds.
#pragma once

#include "cuda/attention/heuristics.h"
#include "cuda/attention/params.h"
#include "cuda/common/launch.h"

namespace mustafar::cuda {

// Runs `plan` with tiles of 8 * tile_count query rows (tile_count 1 or 2), and the merge where there are splits.
using FragmentLauncher = void (*)(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);

void attention_f16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_f16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_bf16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_bf16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_balanced_f16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_balanced_f16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_balanced_bf16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_balanced_bf16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_all_integers_f16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_all_integers_f16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_all_integers_bf16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_all_integers_bf16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_balanced_integers_f16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                         int tile_count);
void attention_balanced_integers_f16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                        int tile_count);
void attention_balanced_integers_bf16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                          int tile_count);
void attention_balanced_integers_bf16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                         int tile_count);
void attention_unstructured_integers_f16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                             int tile_count);
void attention_unstructured_integers_f16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                            int tile_count);
void attention_unstructured_integers_bf16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                              int tile_count);
void attention_unstructured_integers_bf16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&,
                                             int tile_count);
void attention_mixed_f16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_mixed_f16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_mixed_bf16_128(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);
void attention_mixed_bf16_64(const DeviceScope&, const AttentionParams&, const AttentionPlan&, int tile_count);

// Statically allocated shared memory of any kernel with that many tiles and its padding, at most.
constexpr int fragment_static_bytes_bound(int tile_count, bool balanced, bool integers) {
    return (tile_count == 1 ? 2048 : 12288) + (balanced ? 2048 : 0) + (integers ? 4096 : 0);
}

}  // namespace mustafar::cuda
