// Appends tokens to a cache. The blocks that become compressible are compressed first, from the ring and from the new
// tokens, after the channel scales of a slot's first ones; then the new tokens that stay dense are written over ring
// slots that nothing needs any more.
#include "cpu/append.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/compression_rule.h"
#include "cpu/block_reader.h"
#include "cpu/block_writer.h"
#include "cpu/dense_row.h"
#include "cpu/kernels.h"
#include "cpu/key_factors.h"
#include "cpu/parallel.h"
#include "cpu/pattern.h"

namespace mustafar {
namespace {

class Append {
public:
    Append(const mustafar_context& context, const mustafar_append& append)
        : context_(context), append_(append), element_(element_bytes(append.keys.format.dtype)),
          first_item_(static_cast<size_t>(append.batch) + 1) {
        for (int32_t b = 0; b < append.batch; ++b)
            first_item_[static_cast<size_t>(b) + 1] =
                first_item_[static_cast<size_t>(b)] + 2 * int64_t{append.num_kv_heads} * due_blocks(b);
    }

    void run() const {
        if (append_.key_factors != nullptr) {
            const int64_t heads = int64_t{append_.batch} * append_.num_kv_heads;
            parallel_for(thread_count(context_.num_threads, heads), heads, [this](int64_t head, int) {
                find_factors(static_cast<int32_t>(head / append_.num_kv_heads),
                             static_cast<int32_t>(head % append_.num_kv_heads));
            });
        }
        const int64_t items = first_item_.back();
        parallel_for(thread_count(context_.num_threads, items), items, [this](int64_t item, int) { compress(item); });
        for (int32_t b = 0; b < append_.batch; ++b) fill_ring(b);
        for (int32_t b = 0; b < append_.batch; ++b) {
            const int32_t slot = slot_of(append_, b);
            if (append_.new_lengths) append_.new_lengths[slot] = static_cast<int32_t>(length_after(b));
            if (append_.new_compressed) append_.new_compressed[slot] = static_cast<int32_t>(compressed_after(b));
        }
    }

private:
    int64_t length(int32_t b) const { return append_.lengths[slot_of(append_, b)]; }
    int64_t compressed(int32_t b) const { return append_.compressed[slot_of(append_, b)]; }

    int64_t length_after(int32_t b) const {
        return length(b) + (append_.counts ? append_.counts[b] : append_.num_tokens);
    }

    int64_t compressed_after(int32_t b) const {
        return std::max(compressed(b), compressed_tokens<int64_t>(length_after(b), append_.lookahead,
                                                                  append_.local_window, append_.group_size));
    }

    int64_t due_blocks(int32_t b) const { return (compressed_after(b) - compressed(b)) / block_tokens; }

    // A token of the ring or a new one.
    const char* row(int32_t b, int32_t head, int64_t token, bool is_key) const {
        const mustafar_dense& ring = is_key ? append_.tail_keys : append_.tail_values;
        const mustafar_dense& fresh = is_key ? append_.new_keys : append_.new_values;
        const int64_t before = length(b);
        return token < before ? row_address(ring, slot_of(append_, b), head, token % append_.tail_capacity, element_)
                              : row_address(fresh, b, head, token - before, element_);
    }

    // Numbers [num_slots, num_kv_heads, head_dim] of a head; null stays null.
    template <class Float>
    Float* of_head(Float* channels, int32_t b, int32_t head) const {
        if (channels == nullptr) return nullptr;
        return channels + (int64_t{slot_of(append_, b)} * append_.num_kv_heads + head) * append_.keys.format.head_dim;
    }

    // From the first token to be compressed on.
    const uint32_t* bitmap(int32_t b, int32_t head, int64_t token, bool is_key) const {
        const uint32_t* const rows = is_key ? append_.key_bitmap : append_.value_bitmap;
        if (rows == nullptr) return nullptr;
        const int64_t row = (int64_t{b} * append_.num_kv_heads + head) * append_.bitmap_tokens + token - compressed(b);
        return rows + row * bitmap_words(append_.keys.format.head_dim);
    }

    void find_factors(int32_t b, int32_t head) const {
        if (compressed(b) > 0 || compressed_after(b) == 0) return;
        const mustafar_format& format = append_.keys.format;
        compute_key_factors(
            format.dtype, format.head_dim, compressed_after(b),
            [&](int64_t token) { return row(b, head, token, true); }, of_head(append_.key_factors, b, head));
    }

    // Items count through sequences, then KV heads, then blocks to compress, then keys and values.
    void compress(int64_t item) const {
        const auto next = std::upper_bound(first_item_.begin(), first_item_.end(), item);
        const int32_t b = static_cast<int32_t>(next - first_item_.begin()) - 1;
        const int64_t rest = (item - first_item_[static_cast<size_t>(b)]) / 2, blocks = due_blocks(b);
        const bool is_key = item % 2 == 0;
        const int32_t head = static_cast<int32_t>(rest / blocks);
        const int32_t slot = slot_of(append_, b);
        const int64_t block = compressed(b) / block_tokens + rest % blocks;
        const mustafar_blocks& target = is_key ? append_.keys : append_.values;
        const float* const importance = is_key ? append_.key_importance : append_.value_importance;
        const BlockRows rows =
            block_rows(block_tokens, [&](int t) { return row(b, head, block * block_tokens + t, is_key); });
        write_block(BlockReader(target, append_.num_kv_heads, slot, head).locate(block), target.format,
                    kernels(context_.cpu_variant, target.format), rows,
                    Selection{.bitmap = bitmap(b, head, block * block_tokens, is_key),
                              .importance = of_head(importance, b, head)},
                    is_key ? of_head(append_.key_factors, b, head) : nullptr);
    }

    void fill_ring(int32_t b) const {
        const int64_t before = length(b);
        const int32_t slot = slot_of(append_, b);
        const size_t bytes = static_cast<size_t>(append_.keys.format.head_dim) * static_cast<size_t>(element_);
        for (int64_t token = std::max(before, compressed_after(b)); token < length_after(b); ++token)
            for (int32_t head = 0; head < append_.num_kv_heads; ++head) {
                const int64_t place = token % append_.tail_capacity;
                std::memcpy(row_address(append_.tail_keys, slot, head, place, element_),
                            row_address(append_.new_keys, b, head, token - before, element_), bytes);
                std::memcpy(row_address(append_.tail_values, slot, head, place, element_),
                            row_address(append_.new_values, b, head, token - before, element_), bytes);
            }
    }

    const mustafar_context& context_;
    const mustafar_append& append_;
    int element_;
    std::vector<int64_t> first_item_;  // of each sequence's compression work, and the total
};

}  // namespace

void append(const mustafar_context& context, const mustafar_append& append) {
    if (append.batch > 0) Append(context, append).run();
}

}  // namespace mustafar
