// Prune, compress and the table of offsets for whole tensors. One thread block of 128 threads for each block of 32 tokens;
// grid: x = blocks of a head fastest, then heads, then sequences.
#include "cuda/common/dispatch.h"
#include "cuda/common/divisor.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_writer.cuh"
#include "cuda/compress/compress.h"
#include "cuda/compress/key_factors.cuh"

namespace mustafar::cuda {
namespace {

struct Place {
    int block, head, sequence;

    __device__ __forceinline__ Place(const Divisor& blocks, const Divisor& heads) {
        uint32_t rest = blockIdx.x;
        uint32_t list = blocks.split(rest);
        block = static_cast<int>(rest);
        sequence = static_cast<int>(heads.split(list));
        head = static_cast<int>(list);
    }
};

template <class T, int HeadDim, bool ByImportance>
__global__ void __launch_bounds__(block_threads)
    prune_blocks(Dense source, const float* importance, uint32_t* bitmap, int tokens, Divisor blocks, Divisor by_head,
                 int heads, int pattern, int keep, bool aligned) {
    using Writer = BlockWriter<T, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    Writer writer(*reinterpret_cast<typename Writer::Memory*>(memory));
    const Place place(blocks, by_head);
    const int token = place.block * block_tokens + writer.token();
    const bool present = token < tokens;
    let_next_grid_start();
    wait_for_previous_grid();
    writer.load(present ? source.row<const T>(place.sequence, place.head, token) : nullptr, aligned);
    writer.share_rows();
    if constexpr (ByImportance) writer.rank_by(factors_of<HeadDim>(importance, place.sequence, heads, place.head));
    writer.select(pattern, keep);
    if (!present) return;
    uint32_t* const row =
        bitmap + ((static_cast<int64_t>(place.sequence) * heads + place.head) * tokens + token) * Writer::words;
    for (int j = threadIdx.x & 3; j < Writer::words; j += 4) row[j] = writer.bits()[j];
}

// Thread blocks of compress_blocks that the registers of a multiprocessor have to hold where values may be integers; 0: no limit.
template <class T, int HeadDim>
constexpr int resident_blocks = sizeof(T) == 2 && HeadDim <= 128 ? 9 : 0;

// Chosen: by a bitmap or an importance.
template <class T, int HeadDim, bool MayBeIntegers, bool Chosen>
__global__ void __launch_bounds__(block_threads, (MayBeIntegers ? resident_blocks<T, HeadDim> : 0))
    compress_blocks(Dense source, const uint32_t* bitmap, const float* importance, const float* factors,
                    Blocks destination, ValueOrder order, int tokens, Divisor blocks, Divisor by_head, bool aligned) {
    using Writer = BlockWriter<T, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    Writer writer(*reinterpret_cast<typename Writer::Memory*>(memory));
    const Place place(blocks, by_head);
    const int token = place.block * block_tokens + writer.token();
    const bool present = token < tokens;
    let_next_grid_start();
    wait_for_previous_grid();
    writer.load(present ? source.row<const T>(place.sequence, place.head, token) : nullptr, aligned);
    const float* const own_factors = factors_of<HeadDim>(factors, place.sequence, destination.heads, place.head);
    if constexpr (!Chosen) {
        writer.template compress<MayBeIntegers>(Choice{}, destination.pattern, destination.keep,
                                                destination.fixed(place.sequence, place.head, place.block), order,
                                                own_factors);
        return;
    }
    uint32_t bytes;
    uint8_t* const block = destination.any(place.sequence, place.head, place.block, 128 * Writer::words, bytes);
    const int64_t row = (static_cast<int64_t>(place.sequence) * destination.heads + place.head) * tokens + token;
    const Choice choice{bitmap != nullptr, bitmap != nullptr && present ? bitmap + row * Writer::words : nullptr,
                        factors_of<HeadDim>(importance, place.sequence, destination.heads, place.head)};
    if (destination.offsets == nullptr) {
        writer.template compress<MayBeIntegers>(choice, destination.pattern, destination.keep, block, order,
                                                own_factors);
        return;
    }
    if constexpr (!MayBeIntegers) writer.share_rows();
    writer.take_bits(choice.bits);
    writer.template compress_selected<MayBeIntegers>(block, order, bytes, own_factors);
}

// One thread block: sizes of all blocks and their running sum, 1024 at a time.
__global__ void __launch_bounds__(1024) offset_table(const uint32_t* bitmap, uint32_t* table, int64_t* page_bytes,
                                                     int64_t lists, int tokens, int words, int bits, int scales) {
    __shared__ uint32_t warp_sums[32];
    const int blocks = (tokens + block_tokens - 1) / block_tokens;
    const int64_t entries = lists * blocks;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t start = 0;
    for (int64_t first = 0; first < entries; first += blockDim.x) {
        const int64_t entry = first + threadIdx.x;
        uint32_t units = 0;
        if (entry < entries) {
            const int64_t list = entry / blocks;
            const int token = static_cast<int>(entry % blocks) * block_tokens;
            const uint32_t* const rows = bitmap + (list * tokens + token) * words;
            uint32_t count = 0;
            for (int i = 0; i < min(block_tokens, tokens - token) * words; ++i) count += __popc(rows[i]);
            units = (128 * words + scales) / 16 + (count * bits + 127) / 128;
        }
        uint32_t sum = units;
        for (int lanes = 1; lanes < 32; lanes <<= 1) sum = plus_lower_lane(sum, lanes);
        if (lane == 31) warp_sums[warp] = sum;
        __syncthreads();
        uint32_t before = start, all = start;
        for (int w = 0; w < 32; ++w) {
            if (w < warp) before += warp_sums[w];
            all += warp_sums[w];
        }
        if (entry < entries) table[entry] = before + sum - units;
        start = all;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        table[entries] = start;
        *page_bytes = 16 * static_cast<int64_t>(start) + MUSTAFAR_PAGE_PADDING;
    }
}

template <class T, int HeadDim>
__global__ void __launch_bounds__(512) key_factors_of_tokens(Dense source, int heads, int tokens, float* factors) {
    __shared__ float largest[HeadDim];
    const int sequence = static_cast<int>(blockIdx.x) / heads, head = static_cast<int>(blockIdx.x) % heads;
    compute_key_factors<T>(
        tokens, [&](int token) { return source.row<const T>(sequence, head, token); }, largest,
        factors_of<HeadDim>(factors, sequence, heads, head));
}

}  // namespace

void key_factors(const mustafar_context& context, int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads,
                 int64_t tokens, const mustafar_dense& source, float* factors) {
    if (batch == 0 || heads == 0) return;
    const DeviceScope scope(context);
    dispatch_dtype("key factors", dtype, [&](auto type) {
        dispatch_head_dim("key factors", head_dim, [&](auto dim) {
            using T = typename decltype(type)::type;
            launch(scope, "key factors", key_factors_of_tokens<T, dim()>, LaunchShape{int64_t{batch} * heads, 512},
                   Dense(source), heads, static_cast<int>(tokens), factors);
        });
    });
}

void prune(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads, int64_t tokens,
           const mustafar_dense& source, const float* importance, uint32_t* bitmap) {
    const int64_t blocks = divide_up(tokens, block_tokens);
    if (batch == 0 || heads == 0 || tokens == 0) return;
    const DeviceScope scope(context);
    dispatch("prune", format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        const auto run = [&](auto by_importance) {
            static std::atomic<uint64_t> allowed{0};
            const auto kernel = prune_blocks<T, head_dim(), by_importance()>;
            const size_t shared = sizeof(typename BlockWriter<T, head_dim()>::Memory);
            allow_shared_memory(scope, kernel, allowed, 1024);
            launch(scope, "prune", kernel, LaunchShape{blocks * heads * batch, block_threads, shared, true},
                   Dense(source), importance, bitmap, static_cast<int>(tokens), Divisor(static_cast<uint32_t>(blocks)),
                   Divisor(static_cast<uint32_t>(heads)), heads, format.pattern, format.keep,
                   is_vector_aligned(source, sizeof(T)));
        };
        if (importance != nullptr)
            run(std::true_type{});
        else
            run(std::false_type{});
    });
}

void compress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
              const mustafar_dense& source, const uint32_t* bitmap, const float* importance, const float* key_factors,
              const mustafar_blocks& destination) {
    // The positions of a block stand for as many values of each unit, those of tokens past the last one included.
    if (bitmap != nullptr && is_balanced(destination.format) && tokens % block_tokens != 0)
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "tokens: expected a multiple of %d with a bitmap of a balanced pattern on CUDA, got %lld", block_tokens,
             static_cast<long long>(tokens));
    const int64_t blocks = divide_up(tokens, block_tokens);
    if (batch == 0 || heads == 0 || tokens == 0) return;
    const DeviceScope scope(context);
    dispatch("compress", destination.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        const auto run = [&](auto may_be_integers, auto chosen) {
            static std::atomic<uint64_t> allowed{0};
            const auto kernel = compress_blocks<T, head_dim(), may_be_integers(), chosen()>;
            const size_t shared = sizeof(typename BlockWriter<T, head_dim()>::Memory);
            allow_shared_memory(scope, kernel, allowed, 1024);
            launch(scope, "compress", kernel, LaunchShape{blocks * heads * batch, block_threads, shared, true},
                   Dense(source), bitmap, importance, key_factors, Blocks(destination, heads),
                   value_order(destination.format), static_cast<int>(tokens), Divisor(static_cast<uint32_t>(blocks)),
                   Divisor(static_cast<uint32_t>(heads)), is_vector_aligned(source, sizeof(T)));
        };
        const auto run_chosen = [&](auto may_be_integers) {
            if (bitmap != nullptr || importance != nullptr)
                run(may_be_integers, std::true_type{});
            else
                run(may_be_integers, std::false_type{});
        };
        if (has_integers(destination.format))
            run_chosen(std::true_type{});
        else
            run_chosen(std::false_type{});
    });
}

void offsets(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
             int64_t tokens, const uint32_t* bitmap, uint32_t* table, int64_t* page_bytes) {
    const DeviceScope scope(context);
    launch(scope, "offsets", offset_table, LaunchShape{1, 1024}, bitmap, table, page_bytes, int64_t{batch} * heads,
           static_cast<int>(tokens), bitmap_words(format.head_dim), value_bits(format),
           static_cast<int>(scales_bytes(format)));
}

}  // namespace mustafar::cuda
