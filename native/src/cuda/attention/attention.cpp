// Chooses the kernel and the plan of an attention call. Axes: order (fragment or portable), kinds of blocks, dtype, head_dim.
#include "cuda/attention/attention.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "cuda/attention/fragment.h"
#include "cuda/attention/portable.h"
#include "cuda/common/order.h"
#include "cuda/common/ring_layout.h"

namespace mustafar::cuda {
namespace {

constexpr int rows_per_tile = 8;
constexpr int64_t reserved_shared_bytes = 1024;  // by the driver, for each thread block

constexpr int64_t align(int64_t bytes) {
    return (bytes + 63) & ~int64_t{63};
}

struct FragmentPlan {
    AttentionPlan plan;
    int tile_count;
    int64_t tiles;  // in all
    int64_t partial_rows;
};

// By head_dim (64, 128) and dtype (f16, bf16).
struct Launchers {
    FragmentLauncher of[2][2];
};
constexpr Launchers unstructured_launchers{
    {{attention_f16_64, attention_bf16_64}, {attention_f16_128, attention_bf16_128}}};
constexpr Launchers balanced_launchers{{{attention_balanced_f16_64, attention_balanced_bf16_64},
                                        {attention_balanced_f16_128, attention_balanced_bf16_128}}};
constexpr Launchers all_integers_launchers{{{attention_all_integers_f16_64, attention_all_integers_bf16_64},
                                            {attention_all_integers_f16_128, attention_all_integers_bf16_128}}};
constexpr Launchers balanced_integers_launchers{
    {{attention_balanced_integers_f16_64, attention_balanced_integers_bf16_64},
     {attention_balanced_integers_f16_128, attention_balanced_integers_bf16_128}}};
constexpr Launchers unstructured_integers_launchers{
    {{attention_unstructured_integers_f16_64, attention_unstructured_integers_bf16_64},
     {attention_unstructured_integers_f16_128, attention_unstructured_integers_bf16_128}}};
constexpr Launchers mixed_launchers{
    {{attention_mixed_f16_64, attention_mixed_bf16_64}, {attention_mixed_f16_128, attention_mixed_bf16_128}}};

bool has_bitmap(const mustafar_format& format) {
    return arrangement_of(format) == Arrangement::bitmap;
}

// Whether keys and values are read by kernels that choose how while they run. Others know what they read.
bool is_mixed(const mustafar_format& keys, const mustafar_format& values) {
    return has_integers(keys) != has_integers(values) || has_bitmap(keys) != has_bitmap(values);
}

const Launchers& launchers(const mustafar_format& keys, const mustafar_format& values) {
    if (is_mixed(keys, values)) return mixed_launchers;
    if (!has_integers(keys)) return is_balanced(keys) ? balanced_launchers : unstructured_launchers;
    return keeps_all(keys)       ? all_integers_launchers
           : has_positions(keys) ? balanced_integers_launchers
                                 : unstructured_integers_launchers;
}

bool uses_fragments(const mustafar_attention& a) {
    const bool keys = has_fragment_order(a.keys.format), values = has_fragment_order(a.values.format);
    if (keys != values)
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "keys, values: expected both in fragment order or neither, got orders %d and %d", a.keys.format.order,
             a.values.format.order);
    return keys;
}

FragmentLauncher fragment_launcher(const mustafar_format& keys, const mustafar_format& values) {
    return launchers(keys, values).of[keys.head_dim == 128][keys.dtype == MUSTAFAR_DTYPE_BF16];
}

// Planning takes microseconds, and a model's layers and steps ask for the same plan again and again.
AttentionPlan plan_once(const AttentionFootprint& footprint, const AttentionDevice& device, const AttentionWork& work,
                        int tile_count) {
    using Key = std::array<int64_t, 18>;
    const Key key{footprint.iteration_bytes,
                  footprint.pair_bytes,
                  footprint.output_bytes,
                  footprint.padding_bytes,
                  footprint.fixed_bytes,
                  footprint.waits_for_memory,
                  footprint.light,
                  device.multiprocessors,
                  device.shared_per_block,
                  device.shared_per_multiprocessor,
                  device.clusters[1],
                  device.clusters[2],
                  device.clusters[3],
                  device.clusters[4],
                  work.tiles,
                  work.blocks,
                  work.dense_chunks,
                  tile_count};
    thread_local Key last_key{};
    thread_local AttentionPlan last_plan{};
    if (key != last_key) {
        last_plan = tile_count > 1    ? plan_attention(footprint, device, work, double_tile_warps)
                    : footprint.light ? plan_attention(footprint, device, work, light_tile_warps)
                                      : plan_attention(footprint, device, work, single_tile_warps);
        last_key = key;
    }
    return last_plan;
}

FragmentPlan plan_fragments(const DeviceProperties& device, const mustafar_attention& a) {
    const int64_t rows = int64_t{a.num_heads} / a.num_kv_heads * a.num_queries;
    FragmentPlan result;
    result.tile_count = rows > rows_per_tile ? 2 : 1;
    const int64_t tile_rows = rows_per_tile * result.tile_count;
    result.tiles = int64_t{a.batch} * a.num_kv_heads * divide_up(rows, tile_rows);
    const int64_t head_dim = a.keys.format.head_dim;
    const int64_t dense_block = bitmap_bytes(a.keys.format.head_dim) + block_tokens * head_dim * 2;
    AttentionFootprint footprint;
    const auto stage_bytes = [&](uint32_t blocks) {
        return ring_stage_bytes(blocks * static_cast<uint32_t>(fixed_block_bytes(a.keys.format))) +
               ring_stage_bytes(blocks * static_cast<uint32_t>(fixed_block_bytes(a.values.format)));
    };
    const bool mixed = is_mixed(a.keys.format, a.values.format);
    const bool balanced = is_balanced(a.keys.format), integers = has_integers(a.keys.format);
    const bool bitmap = has_bitmap(a.keys.format) || has_bitmap(a.values.format);
    footprint.light = integers && !bitmap && !mixed;
    footprint.iteration_bytes = stage_bytes(1);
    // Blocks lie side by side within a page; where a window slides a sequence may begin anywhere.
    const bool pairs = a.keys.page_blocks % 2 == 0 && a.values.page_blocks % 2 == 0 && a.sliding_window == 0;
    footprint.pair_bytes = footprint.light && pairs ? stage_bytes(2) : 0;
    footprint.output_bytes = align(std::min(rows, tile_rows) * (head_dim + 8) * 4);
    // A bitmap that contradicts its block may point as far as a dense block reaches.
    // The same place takes what a cluster's thread blocks send each other.
    footprint.padding_bytes =
        std::max(bitmap ? dense_block : 0, align(exchange_quad_bytes * (tile_rows * head_dim / 4 + max_cluster)));
    footprint.fixed_bytes =
        reserved_shared_bytes +
        fragment_static_bytes_bound(result.tile_count, mixed || (balanced && !integers), mixed || integers);
    // Of balanced blocks those of 2:4 are long enough for one stage to keep the memory busy.
    footprint.waits_for_memory = footprint.light || (balanced && !mixed && 2 * a.keys.format.keep < head_dim);
    const int64_t seen = a.sliding_window == 0
                             ? a.max_tokens
                             : std::min<int64_t>(a.max_tokens, int64_t{a.sliding_window} + a.num_queries);
    // On average the window and half a group are dense, two thirds of what there is room for where they are alike.
    const int64_t dense = std::min<int64_t>(seen, int64_t{a.tail_capacity} * 2 / 3);
    const AttentionWork work{result.tiles, divide_up(seen - dense, block_tokens),
                             divide_up(dense, chunk_tokens) + divide_up(a.num_fresh, chunk_tokens)};
    AttentionDevice limits{
        device.multiprocessors, device.shared_memory_per_block, device.shared_memory_per_multiprocessor, {}};
    std::copy(std::begin(device.clusters), std::end(device.clusters), limits.clusters);
    result.plan = plan_once(footprint, limits, work, result.tile_count);
    if (result.plan.warps == 0)
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "attention: a block of keys and values (%lld bytes) does not fit this device",
             static_cast<long long>(footprint.iteration_bytes));
    const int partials = result.plan.splits / result.plan.cluster;
    result.partial_rows = partials == 1 ? 0 : result.tiles * partials * tile_rows;
    return result;
}

Divisor divisor(int32_t value) {
    return Divisor(static_cast<uint32_t>(value));
}

// Counters, then partial outputs, then their maxima and sums; none of them where nothing is split.
int64_t workspace_bytes(const FragmentPlan& plan, int head_dim) {
    if (plan.partial_rows == 0) return 0;
    return MUSTAFAR_WORKSPACE_COUNTER_BYTES + align(plan.partial_rows * head_dim * 4) + align(plan.partial_rows * 8);
}

AttentionParams parameters(const mustafar_attention& a) {
    AttentionParams p{};
    p.keys = Blocks(a.keys, a.num_kv_heads);
    p.values = Blocks(a.values, a.num_kv_heads);
    p.query = a.query;
    p.output = a.output;
    p.tail_keys = a.tail_keys;
    p.tail_values = a.tail_values;
    p.fresh_keys = a.fresh_keys;
    p.fresh_values = a.fresh_values;
    p.sequences = a.sequences;
    p.lengths = a.lengths;
    p.compressed = a.compressed;
    p.query_counts = a.query_counts;
    p.key_factors = a.key_factors;
    p.factors_aligned = reinterpret_cast<uintptr_t>(a.key_factors) % 16 == 0;
    p.log_sum_exp = a.log_sum_exp;
    p.batch = a.batch;
    p.num_slots = a.num_slots;
    p.num_kv_heads = a.num_kv_heads;
    p.group = a.num_heads / a.num_kv_heads;
    p.num_queries = a.num_queries;
    p.num_fresh = a.num_fresh;
    p.tail_capacity = a.tail_capacity;
    p.sliding_window = a.sliding_window;
    p.by_group = divisor(p.group);
    p.scale_log2 = a.scale * 1.4426950408889634f;
    return p;
}

void run_fragments(const DeviceScope& scope, const mustafar_attention& a) {
    const FragmentPlan plan = plan_fragments(scope.properties(), a);
    const int head_dim = a.keys.format.head_dim;
    const int64_t needed = workspace_bytes(plan, head_dim);
    if (a.workspace_bytes < needed || (needed > 0 && a.workspace == nullptr))
        fail(MUSTAFAR_STATUS_BUFFER_TOO_SMALL, "workspace_bytes: expected >= %lld, got %lld",
             static_cast<long long>(needed), static_cast<long long>(a.workspace_bytes));
    AttentionParams p = parameters(a);
    p.tiles = static_cast<int32_t>(plan.tiles / (int64_t{a.batch} * a.num_kv_heads));
    p.splits = plan.plan.splits;
    p.table_blocks = static_cast<uint32_t>(std::min(p.keys.table_blocks(), p.values.table_blocks()));
    p.by_split = divisor(p.splits);
    p.by_tile = divisor(p.tiles);
    p.by_kv_head = divisor(p.num_kv_heads);
    p.by_stride = divisor(p.splits * plan.plan.warps);
    p.cluster = plan.plan.cluster;
    p.partials = p.splits / p.cluster;
    p.ring_depth = plan.plan.ring_depth;
    p.span = plan.plan.span;
    p.crowded = plan.tiles * p.splits >= scope.properties().multiprocessors;
    p.warp_bytes = static_cast<int32_t>(plan.plan.warp_bytes);
    p.aligned = is_vector_aligned(a.query, 2) &&
                (a.tail_capacity == 0 || (is_vector_aligned(a.tail_keys, 2) && is_vector_aligned(a.tail_values, 2))) &&
                (a.num_fresh == 0 || (is_vector_aligned(a.fresh_keys, 2) && is_vector_aligned(a.fresh_values, 2)));
    if (p.partials > 1) {
        uint8_t* const workspace = static_cast<uint8_t*>(a.workspace);
        uint8_t* const outputs = workspace + MUSTAFAR_WORKSPACE_COUNTER_BYTES;
        p.arrivals = reinterpret_cast<uint32_t*>(workspace);
        p.partial_output = reinterpret_cast<float*>(outputs);
        p.partial_state = reinterpret_cast<float2*>(outputs + align(plan.partial_rows * head_dim * 4));
    }
    fragment_launcher(a.keys.format, a.values.format)(scope, p, plan.plan, plan.tile_count);
}

bool empty(const mustafar_attention& a) {
    return a.batch == 0 || a.num_queries == 0;
}

}  // namespace

int64_t attention_workspace(const mustafar_context& context, const mustafar_attention& a) {
    if (empty(a) || !uses_fragments(a)) return 0;
    const DeviceScope scope(context);
    return workspace_bytes(plan_fragments(scope.properties(), a), a.keys.format.head_dim);
}

void attention(const mustafar_context& context, const mustafar_attention& a) {
    if (empty(a)) return;
    const DeviceScope scope(context);
    if (uses_fragments(a))
        run_fragments(scope, a);
    else
        attention_portable(scope, a.keys.format, parameters(a));
}

}  // namespace mustafar::cuda
