// Fused decode attention. Work is split over (sequence, KV head, run of tokens); each item walks its tokens in tiles:
// scores of all query rows of the KV head, one step of the online softmax, weighted sum of the values. Items of one
// (sequence, KV head) are merged by their log-sum-exp.
#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/block_products.h"
#include "cpu/block_reader.h"
#include "cpu/dense_row.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace mustafar {
namespace {

constexpr int64_t smallest_split = 512;  // tokens; below, starting an item costs more than it gains
constexpr int most_tile_tokens = 512;    // scores of a tile stay in the first-level cache
constexpr int most_tile_scores = 16384;
constexpr int64_t announced_bytes = 768;  // more or fewer gained less
constexpr float log2e = 1.44269504088896340736f;
constexpr float ln2 = 0.69314718055994530942f;
constexpr float infinity = std::numeric_limits<float>::infinity();

// How a call is divided, and where its parts are in the workspace. All counts are floats.
struct Plan {
    int rows;    // query rows of a KV head
    int padded;  // channels of a padded row
    int tile_tokens;
    int threads;
    int64_t split_tokens;
    int splits;             // of the longest sequence
    int64_t partial;        // one item's result: [rows] maximum, [rows] sum, [rows][padded] weighted values
    int64_t block_queries;  // queries that are prepared for blocks separately from those for dense tokens
    int64_t scratch;        // one thread's prepared queries and tile of scores

    Plan(const mustafar_context& context, const mustafar_attention& attention) {
        const int64_t heads = int64_t{attention.batch} * attention.num_kv_heads;
        rows = attention.num_heads / attention.num_kv_heads * attention.num_queries;
        padded = 32 * bitmap_words(attention.keys.format.head_dim);
        // One page of a head at a time, so that memory in which keys and values alternate is read from front to
        // back. Integer kernels prefetch what they read next, and take many tokens at once to amortise their setup.
        const bool integers = has_integers(attention.keys.format) || has_integers(attention.values.format);
        const int64_t page_tokens = integers ? most_tile_tokens : int64_t{attention.keys.page_blocks} * block_tokens;
        const int most_tokens = most_tile_scores / std::max(rows, 1) / block_tokens * block_tokens;
        tile_tokens = static_cast<int>(
            std::clamp<int64_t>(std::min<int64_t>(page_tokens, most_tokens), block_tokens, most_tile_tokens));
        const int64_t most_splits = std::max<int64_t>(1, attention.max_tokens / smallest_split);
        const int most_threads = thread_count(context.num_threads, std::max<int64_t>(1, heads) * most_splits);
        // Four items per thread even out sequences of different length; a single thread needs no splits.
        const int64_t wanted =
            most_threads == 1 ? 1 : divide_up(int64_t{4} * most_threads, std::max<int64_t>(1, heads));
        const int64_t chosen = std::clamp<int64_t>(wanted, 1, most_splits);
        split_tokens = divide_up(divide_up(std::max(attention.max_tokens, 1), chosen), tile_tokens) * tile_tokens;
        splits = static_cast<int>(divide_up(std::max(attention.max_tokens, 1), split_tokens));
        threads = thread_count(context.num_threads, std::max<int64_t>(1, heads) * splits);
        partial = divide_up(int64_t{rows} * (padded + 2), 16) * 16;
        block_queries =
            int64_t{rows} *
            BlockProducts(context.cpu_variant, attention.keys.format, BlockProducts::Role::keys).query_floats();
        scratch = divide_up(int64_t{rows} * padded + block_queries + int64_t{rows} * tile_tokens, 16) * 16;
    }

    int64_t partials(const mustafar_attention& attention) const {
        return int64_t{attention.batch} * attention.num_kv_heads * splits * partial;
    }
    int64_t bytes(const mustafar_attention& attention) const { return 4 * (partials(attention) + threads * scratch); }
};

// A call's kernels: products with dense tokens, and with those of blocks, separately for keys and values.
struct Products {
    Products(int32_t cpu_variant, const mustafar_attention& attention)
        : dense(kernels(cpu_variant, attention.keys.format)),
          keys(cpu_variant, attention.keys.format, BlockProducts::Role::keys),
          values(cpu_variant, attention.values.format, BlockProducts::Role::values) {}

    const Kernels& dense;
    const BlockProducts keys, values;
};

// Prepared query rows.
struct Queries {
    float* dense;   // for dense tokens
    float* blocks;  // for those in blocks; the same if they are prepared alike
};

// The tokens of one (sequence, KV head), wherever they are stored.
class Sequence {
public:
    // row: of the batch.
    Sequence(const mustafar_attention& attention, const Products& products, int32_t row, int32_t head)
        : attention_(attention), products_(products), row_(row), slot_(slot_of(attention, row)), head_(head),
          keys_(attention.keys, attention.num_kv_heads, slot_, head),
          values_(attention.values, attention.num_kv_heads, slot_, head),
          element_(element_bytes(attention.keys.format.dtype)), length_(attention.lengths[slot_]),
          compressed_(attention.compressed[slot_]),
          queries_(attention.query_counts ? attention.query_counts[row] : attention.num_queries),
          fresh_(length_ - (attention.num_fresh ? queries_ : 0)) {}

    int64_t length() const { return length_; }
    int queries() const { return queries_; }

    // Query i sees the tokens first_seen(i) ... last_seen(i).
    int64_t last_seen(int query) const { return length_ - queries_ + query; }
    int64_t first_seen(int query) const {
        return attention_.sliding_window > 0 ? last_seen(query) + 1 - attention_.sliding_window : 0;
    }

    // scores[r * stride + i] = query row r . key begin + i, up to token end - 1
    void scores(int64_t begin, int64_t end, const Queries& queries, int rows, float* scores, int64_t stride) const {
        const int64_t packed = std::clamp(compressed_, begin, end);
        if (packed > begin)
            products_.keys.scores(keys_, begin, packed, upcoming(values_, begin, packed), queries.blocks, rows, scores,
                                  stride);
        for_dense(packed, end, [&](int64_t token, int count) {
            products_.dense.dense_scores(dense_run(token, count, attention_.tail_keys, attention_.fresh_keys),
                                         queries.dense, rows, scores + (token - begin), stride);
        });
    }

    // sums[r] += weights[r * stride + i] * value begin + i, up to token end - 1
    void sum(int64_t begin, int64_t end, const float* weights, int64_t stride, int rows, float* sums) const {
        const int64_t packed = std::clamp(compressed_, begin, end);
        products_.values.sum(values_, begin, packed, upcoming(keys_, end, compressed_), weights, stride, rows, sums);
        for_dense(packed, end, [&](int64_t token, int count) {
            products_.dense.dense_sum(dense_run(token, count, attention_.tail_values, attention_.fresh_values),
                                      weights + (token - begin), stride, rows, sums);
        });
    }

    // Prefetches the first keys of a block that will be read soon. The CPU's own prefetching continues from there, but
    // does not find a new page.
    void announce_keys(int64_t token) const {
        if (token >= compressed_) return;
        const Block block = keys_.locate(token / block_tokens);
        for (int64_t i = 0; i < std::min(block.bytes, announced_bytes); i += 64) __builtin_prefetch(block.begin + i);
    }

private:
    static UpcomingBlocks upcoming(const BlockReader& reader, int64_t begin, int64_t end) {
        return {.reader = &reader, .first = begin / block_tokens, .end = divide_up(end, block_tokens)};
    }

    // Calls work(token, count) for runs of adjacent dense tokens, up to a block's number.
    template <class Work>
    void for_dense(int64_t begin, int64_t end, const Work& work) const {
        for (int64_t token = begin; token < end;) {
            int64_t stop = std::min(end, token + block_tokens);
            if (token < fresh_)
                stop = std::min({stop, fresh_, token + attention_.tail_capacity - token % attention_.tail_capacity});
            work(token, static_cast<int>(stop - token));
            token = stop;
        }
    }

    TokenRun dense_run(int64_t token, int count, const mustafar_dense& tail, const mustafar_dense& fresh) const {
        const bool in_tail = token < fresh_;
        const mustafar_dense& tensor = in_tail ? tail : fresh;
        const int64_t place = in_tail ? token % attention_.tail_capacity : token - fresh_;
        return TokenRun{.data = row_address(tensor, in_tail ? slot_ : row_, head_, place, element_),
                        .bitmap = nullptr,
                        .row_bytes = tensor.token_stride * element_,
                        .head_dim = attention_.keys.format.head_dim,
                        .tokens = count};
    }

    const mustafar_attention& attention_;
    const Products& products_;
    int32_t row_, slot_, head_;
    BlockReader keys_, values_;
    int element_;
    int64_t length_, compressed_;
    int queries_;
    int64_t fresh_;
};

class Attention {
public:
    Attention(const mustafar_context& context, const mustafar_attention& attention)
        : attention_(attention), products_(context.cpu_variant, attention), plan_(context, attention),
          element_(element_bytes(attention.keys.format.dtype)), head_dim_(attention.keys.format.head_dim) {
        if (attention.workspace_bytes < plan_.bytes(attention))
            fail(MUSTAFAR_STATUS_BUFFER_TOO_SMALL, "workspace_bytes: expected >= %lld, got %lld",
                 static_cast<long long>(plan_.bytes(attention)), static_cast<long long>(attention.workspace_bytes));
        if (attention.workspace == nullptr || reinterpret_cast<uintptr_t>(attention.workspace) % 64 != 0)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "workspace: expected an address that is a multiple of 64, got %p",
                 attention.workspace);
        partials_ = static_cast<float*>(attention.workspace);
        scratch_ = partials_ + plan_.partials(attention);
    }

    void run() const {
        const int64_t heads = int64_t{attention_.batch} * attention_.num_kv_heads;
        parallel_for(plan_.threads, heads * plan_.splits, [this](int64_t item, int thread) {
            const int64_t head = item / plan_.splits;
            attend(static_cast<int32_t>(head / attention_.num_kv_heads),
                   static_cast<int32_t>(head % attention_.num_kv_heads), item % plan_.splits,
                   scratch_ + thread * plan_.scratch);
        });
        parallel_for(plan_.splits == 1 ? 1 : plan_.threads, heads, [this](int64_t head, int) { merge(head); });
    }

private:
    float* partial(int64_t head, int64_t split) const {
        return partials_ + (head * plan_.splits + split) * plan_.partial;
    }

    // Splits of a sequence that hold any token.
    int64_t used_splits(int32_t batch) const {
        return divide_up(attention_.lengths[slot_of(attention_, batch)], plan_.split_tokens);
    }

    void attend(int32_t batch, int32_t head, int64_t split, float* scratch) const {
        if (split >= used_splits(batch)) return;
        const Sequence sequence(attention_, products_, batch, head);
        const int64_t end = std::min(sequence.length(), (split + 1) * plan_.split_tokens);
        // No query sees what comes before the first query's window.
        const int64_t begin = std::clamp(sequence.first_seen(0), split * plan_.split_tokens, end);
        float* maximum = partial(int64_t{batch} * attention_.num_kv_heads + head, split);
        float* sum = maximum + plan_.rows;
        float* values = sum + plan_.rows;
        std::fill_n(maximum, plan_.rows, -infinity);
        std::fill_n(sum, int64_t{plan_.rows} * (plan_.padded + 1), 0.0f);
        float* const dense = scratch;
        const Queries queries{dense, plan_.block_queries > 0 ? dense + int64_t{plan_.rows} * plan_.padded : dense};
        float* const scores = dense + int64_t{plan_.rows} * plan_.padded + plan_.block_queries;
        for (int r = 0; r < plan_.rows; ++r) prepare_query(batch, head, r, queries);
        for (int64_t tile = begin; tile < end; tile += plan_.tile_tokens)
            attend_tile(sequence, tile, std::min(end, tile + plan_.tile_tokens), queries, scores, maximum, sum, values);
    }

    void prepare_query(int32_t batch, int32_t head, int r, const Queries& queries) const {
        const int group = attention_.num_heads / attention_.num_kv_heads;
        const char* const row = row_address(attention_.query, batch, head * group + r / attention_.num_queries,
                                            r % attention_.num_queries, element_);
        products_.dense.prepare_query(row, head_dim_, queries.dense + int64_t{r} * plan_.padded);
        if (plan_.block_queries == 0) return;
        const int64_t factors_row = int64_t{slot_of(attention_, batch)} * attention_.num_kv_heads + head;
        const float* const factors =
            attention_.key_factors == nullptr ? nullptr : attention_.key_factors + factors_row * head_dim_;
        products_.keys.prepare_query(row, factors, queries.blocks + r * products_.keys.query_floats());
    }

    void attend_tile(const Sequence& sequence, int64_t begin, int64_t end, const Queries& queries, float* scores,
                     float* maximum, float* sum, float* values) const {
        sequence.scores(begin, end, queries, plan_.rows, scores, plan_.tile_tokens);
        sequence.announce_keys(end);
        for (int r = 0; r < plan_.rows; ++r) {
            float* row = scores + int64_t{r} * plan_.tile_tokens;
            hide(sequence, r % attention_.num_queries, begin, end, row);
            const float factor = products_.dense.softmax(row, static_cast<int>(end - begin), attention_.scale * log2e,
                                                         maximum + r, sum + r);
            if (factor != 1.0f) products_.dense.rescale(values + int64_t{r} * plan_.padded, plan_.padded, factor);
        }
        // Rows [row, row + rows) of the weighted values, over the tokens [first, last). A query before the first token
        // has a last one below 0.
        const auto add = [&](int64_t first, int64_t last, int row, int rows) {
            if (first >= last) return;
            sequence.sum(first, last, scores + int64_t{row} * plan_.tile_tokens + (first - begin), plan_.tile_tokens,
                         rows, values + int64_t{row} * plan_.padded);
        };
        // The tokens that all queries see are added for all rows at once. Of the few others each row takes those that
        // it sees: with a weight of zero, a non-finite value would still become NaN.
        const int64_t first_common = std::clamp(sequence.first_seen(sequence.queries() - 1), begin, end);
        const int64_t end_common = std::clamp(sequence.last_seen(0) + 1, first_common, end);
        add(first_common, end_common, 0, plan_.rows);
        if (end_common - first_common == end - begin) return;
        for (int r = 0; r < plan_.rows; ++r) {
            const int query = r % attention_.num_queries;
            const int64_t first = std::max(begin, sequence.first_seen(query));
            const int64_t last = std::min(end, sequence.last_seen(query) + 1);
            add(first, std::min(first_common, last), r, 1);
            add(std::max(end_common, first), last, r, 1);
        }
    }

    // Scores of the tile's tokens that query i does not see become -infinity.
    void hide(const Sequence& sequence, int query, int64_t begin, int64_t end, float* scores) const {
        for (int64_t t = begin; t < std::min(end, sequence.first_seen(query)); ++t) scores[t - begin] = -infinity;
        for (int64_t t = std::max(begin, sequence.last_seen(query) + 1); t < end; ++t) scores[t - begin] = -infinity;
    }

    void merge(int64_t index) const {
        const int32_t batch = static_cast<int32_t>(index / attention_.num_kv_heads);
        const int32_t head = static_cast<int32_t>(index % attention_.num_kv_heads);
        const int group = attention_.num_heads / attention_.num_kv_heads;
        const int count = attention_.query_counts ? attention_.query_counts[batch] : attention_.num_queries;
        const int64_t splits = used_splits(batch);
        for (int r = 0; r < plan_.rows; ++r) {
            const int query_head = head * group + r / attention_.num_queries, query = r % attention_.num_queries;
            alignas(64) float merged[max_head_dim] = {};
            float maximum = -infinity, sum = 0.0f;
            if (query < count) {
                for (int64_t s = 0; s < splits; ++s) {
                    const float* part = partial(index, s);
                    if (maximum < part[r]) maximum = part[r];
                }
                for (int64_t s = 0; s < splits; ++s) {
                    const float* part = partial(index, s);
                    const float factor = part[r] == maximum ? 1.0f : std::exp2(part[r] - maximum);
                    const float* values = part + 2 * plan_.rows + int64_t{r} * plan_.padded;
                    sum += factor * part[plan_.rows + r];
                    for (int c = 0; c < plan_.padded; ++c) merged[c] += factor * values[c];
                }
            }
            // A sum of zero: the row sees no token, or all its scores are -infinity and its weights 0 / 0.
            const bool sees_token =
                query < count && attention_.lengths[slot_of(attention_, batch)] - count + query >= 0;
            const float nothing = sees_token ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
            products_.dense.finish(merged, sum == 0.0f ? nothing : 1.0f / sum, head_dim_,
                                   row_address(attention_.output, batch, query_head, query, element_));
            if (attention_.log_sum_exp != nullptr)
                attention_.log_sum_exp[(int64_t{batch} * attention_.num_heads + query_head) * attention_.num_queries +
                                       query] = sum == 0.0f ? -infinity : (maximum + std::log2(sum)) * ln2;
        }
    }

    const mustafar_attention& attention_;
    const Products products_;
    const Plan plan_;
    int element_, head_dim_;
    float *partials_, *scratch_;
};

}  // namespace

int64_t attention_workspace(const mustafar_context& context, const mustafar_attention& attention) {
    return Plan(context, attention).bytes(attention);
}

void attention(const mustafar_context& context, const mustafar_attention& attention) {
    if (attention.batch == 0 || attention.num_queries == 0) return;
    Attention(context, attention).run();
}

}  // namespace mustafar
