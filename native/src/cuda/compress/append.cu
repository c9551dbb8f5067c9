// Appends tokens to a cache: one launch compresses what falls due and fills the ring of dense tokens.
//
// Grid: x = parts fastest, then keys and values, then KV heads, then sequences. Part 0 compresses the blocks that take
// tokens from the ring and, once it has read them, writes the new dense tokens into it; part j compresses the j-th block
// that consists of new tokens alone. So nothing in a launch reads what another thread block of it writes.
#include "core/compression_rule.h"
#include "cuda/common/dispatch.h"
#include "cuda/common/divisor.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_writer.cuh"
#include "cuda/compress/compress.h"
#include "cuda/compress/key_factors.cuh"

namespace mustafar::cuda {
namespace {

struct AppendParams {
    Dense fresh[2], tail[2];  // keys, values
    Blocks blocks[2];
    ValueOrder order[2];
    const int32_t* sequences;    // or null
    const int32_t* counts;       // or null
    const int32_t* lengths;      // [slots]
    const int32_t* compressed;   // [slots]
    int32_t* new_lengths;        // [slots] or null
    int32_t* new_compressed;     // [slots] or null
    float* key_factors;          // [slots, heads, head_dim] or null
    const float* importance[2];  // [slots, heads, head_dim] or null
    const uint32_t* bitmap[2];   // [batch, heads, bitmap_tokens, words] or null
    Divisor by_part, by_head;
    int32_t num_slots, num_tokens, lookahead, group_size, local_window, tail_capacity, bitmap_tokens;
    bool aligned;
};

// The tokens of one sequence and head, before and after.
template <class T>
struct AppendedTokens {
    const AppendParams& p;
    int batch_row, slot, head, which;  // keys, values
    int before, compressed, length, due;

    __device__ __forceinline__ AppendedTokens(const AppendParams& params, int row_of_batch, int head_index,
                                              int which_of_two)
        : p(params), batch_row(row_of_batch), head(head_index), which(which_of_two) {
        slot = p.sequences == nullptr ? batch_row : p.sequences[batch_row];
        if (!exists()) return;
        before = p.lengths[slot], compressed = p.compressed[slot];
        const int count = p.counts == nullptr ? p.num_tokens : min(max(p.counts[batch_row], 0), p.num_tokens);
        length = before + count;
        due = max(compressed, compressed_tokens(length, p.lookahead, p.local_window, p.group_size));
    }

    __device__ __forceinline__ bool exists() const { return slot >= 0 && slot < p.num_slots; }
    __device__ __forceinline__ const T* row(int token) const {
        return token < before ? p.tail[which].row<const T>(slot, head, token % p.tail_capacity)
                              : p.fresh[which].row<const T>(batch_row, head, token - before);
    }
    // Whether channel scales are to be computed.
    __device__ __forceinline__ bool compresses_first() const {
        return p.key_factors != nullptr && which == 0 && compressed == 0 && due > 0;
    }
};

// Before an append of many tokens, whose blocks are compressed by many thread blocks. Grid: heads fastest, then sequences.
template <class T, int HeadDim>
__global__ void __launch_bounds__(512) first_key_factors(const __grid_constant__ AppendParams p) {
    __shared__ float largest[HeadDim];
    uint32_t head = blockIdx.x;
    const uint32_t batch_row = p.by_head.split(head);
    const AppendedTokens<T> tokens(p, static_cast<int>(batch_row), static_cast<int>(head), 0);
    if (!tokens.exists() || !tokens.compresses_first()) return;
    compute_key_factors<T>(
        tokens.due, [&](int token) { return tokens.row(token); }, largest,
        factors_of<HeadDim>(p.key_factors, tokens.slot, static_cast<int>(p.by_head.value()), tokens.head));
}

// Chosen: bitmaps or an importance say which channels are kept of keys or of values.
template <class T, int HeadDim, bool Chosen>
__global__ void __launch_bounds__(block_threads) append_tokens(const __grid_constant__ AppendParams p) {
    using Writer = BlockWriter<T, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    uint32_t rest = blockIdx.x;
    const uint32_t list = p.by_part.split(rest);
    const int part = static_cast<int>(rest), which = static_cast<int>(list & 1);
    rest = list >> 1;
    const int batch_row = static_cast<int>(p.by_head.split(rest)), head = static_cast<int>(rest);
    // Attention starts when this grid has ended: some of its thread blocks would crowd on few multiprocessors otherwise.
    wait_for_previous_grid();

    const AppendedTokens<T> tokens(p, batch_row, head, which);
    if (!tokens.exists()) return;
    const int slot = tokens.slot, before = tokens.before, length = tokens.length, due = tokens.due;
    if (part == 0 && which == 0 && head == 0 && threadIdx.x == 0) {
        if (p.new_lengths != nullptr) p.new_lengths[slot] = length;
        if (p.new_compressed != nullptr) p.new_compressed[slot] = due;
    }

    float* const factors =
        which == 0 ? factors_of<HeadDim>(p.key_factors, slot, static_cast<int>(p.by_head.value()), head) : nullptr;
    if (p.by_part.value() == 1 && tokens.compresses_first())
        compute_key_factors<T>(
            due, [&](int token) { return tokens.row(token); }, *reinterpret_cast<float(*)[HeadDim]>(memory), factors);
    Writer writer(*reinterpret_cast<typename Writer::Memory*>(memory));
    const auto compress = [&](int block) {
        const Blocks& blocks = p.blocks[which];
        const int token = block * block_tokens + writer.token();
        writer.load(tokens.row(token), p.aligned);
        if constexpr (Chosen) {
            const int heads = static_cast<int>(p.by_head.value());
            const int row = min(token - tokens.compressed, p.bitmap_tokens - 1);
            const int64_t rows = (static_cast<int64_t>(batch_row) * heads + head) * p.bitmap_tokens;
            const uint32_t* const bitmap = p.bitmap[which];
            const Choice choice{bitmap != nullptr, bitmap == nullptr ? nullptr : bitmap + (rows + row) * Writer::words,
                                factors_of<HeadDim>(p.importance[which], slot, heads, head)};
            writer.template compress_chosen<true>(choice, blocks.pattern, blocks.keep, blocks.fixed(slot, head, block),
                                                  p.order[which], factors);
        } else {
            writer.template compress<true>(blocks.pattern, blocks.keep, blocks.fixed(slot, head, block), p.order[which],
                                           factors);
        }
    };
    const int first_new = (before + block_tokens - 1) / block_tokens;  // block of new tokens alone
    const int end = due / block_tokens;
    int block = part > 0 ? first_new + part - 1 : tokens.compressed / block_tokens;
    for (const int stop = min(part > 0 ? block + 1 : first_new, end); block < stop; ++block) compress(block);
    if (part > 0) return;
    __syncthreads();
    const int first_dense = max(before, due);
    for (int i = threadIdx.x; i < (length - first_dense) * HeadDim; i += block_threads) {
        const int token = first_dense + i / HeadDim, channel = i % HeadDim;
        p.tail[which].row<T>(slot, head, token % p.tail_capacity)[channel] =
            p.fresh[which].row<const T>(batch_row, head, token - before)[channel];
    }
}

}  // namespace

void append(const mustafar_context& context, const mustafar_append& a) {
    if (a.batch == 0) return;
    const DeviceScope scope(context);
    const int32_t parts = 1 + a.num_tokens / block_tokens;
    AppendParams p{};
    p.fresh[0] = a.new_keys;
    p.fresh[1] = a.new_values;
    p.tail[0] = a.tail_keys;
    p.tail[1] = a.tail_values;
    p.blocks[0] = Blocks(a.keys, a.num_kv_heads);
    p.blocks[1] = Blocks(a.values, a.num_kv_heads);
    p.order[0] = value_order(a.keys.format, true);
    p.order[1] = value_order(a.values.format, false);
    p.sequences = a.sequences;
    p.counts = a.counts;
    p.lengths = a.lengths;
    p.compressed = a.compressed;
    p.new_lengths = a.new_lengths;
    p.new_compressed = a.new_compressed;
    p.key_factors = a.key_factors;
    p.importance[0] = a.key_importance;
    p.importance[1] = a.value_importance;
    p.bitmap[0] = a.key_bitmap;
    p.bitmap[1] = a.value_bitmap;
    p.bitmap_tokens = a.bitmap_tokens;
    const bool chosen = a.key_importance != nullptr || a.value_importance != nullptr || a.key_bitmap != nullptr ||
                        a.value_bitmap != nullptr;
    p.by_part = Divisor(static_cast<uint32_t>(parts));
    p.by_head = Divisor(static_cast<uint32_t>(a.num_kv_heads));
    p.num_slots = a.num_slots;
    p.num_tokens = a.num_tokens;
    p.lookahead = a.lookahead;
    p.group_size = a.group_size;
    p.local_window = a.local_window;
    p.tail_capacity = a.tail_capacity;
    const int element = element_bytes(a.keys.format.dtype);
    p.aligned =
        is_vector_aligned(a.tail_keys, element) && is_vector_aligned(a.tail_values, element) &&
        (a.num_tokens == 0 || (is_vector_aligned(a.new_keys, element) && is_vector_aligned(a.new_values, element)));
    dispatch("append", a.keys.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        if (p.key_factors != nullptr && parts > 1)
            launch(scope, "append", first_key_factors<T, head_dim()>,
                   LaunchShape{int64_t{a.num_kv_heads} * a.batch, 512}, p);
        const auto run = [&](auto is_chosen) {
            static std::atomic<uint64_t> allowed{0};
            const auto kernel = append_tokens<T, head_dim(), is_chosen()>;
            allow_shared_memory(scope, kernel, allowed, 1024);
            launch(scope, "append", kernel,
                   LaunchShape{int64_t{parts} * 2 * a.num_kv_heads * a.batch, block_threads,
                               sizeof(typename BlockWriter<T, head_dim()>::Memory), true},
                   p);
        };
        if (chosen)
            run(std::true_type{});
        else
            run(std::false_type{});
    });
}

}  // namespace mustafar::cuda
