// Appends tokens to a cache: one launch compresses what falls due and fills the ring of dense tokens.
//
// Grid: x = parts fastest, then keys and values, then KV heads, then sequences. Nothing in a launch reads what another thread
// block of it writes.
#include "cuda/compress/append.cuh"

namespace mustafar::cuda {
namespace {

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

template <class T, int HeadDim, bool Chosen>
__global__ void __launch_bounds__(block_threads, append_blocks<HeadDim>)
    append_tokens(const __grid_constant__ AppendParams p) {
    extern __shared__ __align__(16) uint8_t memory[];
    uint32_t rest = blockIdx.x;
    const uint32_t list = p.by_part.split(rest);
    const int part = static_cast<int>(rest), which = static_cast<int>(list & 1);
    rest = list >> 1;
    const int batch_row = static_cast<int>(p.by_head.split(rest)), head = static_cast<int>(rest);
    // Attention starts when this grid has ended: some of its thread blocks would crowd on few multiprocessors otherwise.
    wait_for_previous_grid();
    const AppendedTokens<T> tokens(p, batch_row, head, which);
    if (tokens.exists()) append_part<T, HeadDim, Chosen>(p, tokens, part, memory);
}

}  // namespace

void append(const mustafar_context& context, const mustafar_append& a) {
    if (a.batch == 0) return;
    const DeviceScope scope(context);
    const AppendParams p(a);
    const int64_t parts = p.by_part.value();
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
                   LaunchShape{parts * 2 * a.num_kv_heads * a.batch, block_threads,
                               sizeof(typename BlockWriter<T, head_dim()>::Memory), true},
                   p);
        };
        if (p.chosen())
            run(std::true_type{});
        else
            run(std::false_type{});
    });
}

}  // namespace mustafar::cuda
