#include <algorithm>
#include <climits>
#include <vector>

#include "calls.h"

namespace mustafar_fuzz {
namespace {

// Slots for a batch, or null and as many slots as rows. Sets num_slots.
template <class Call>
void slots(Arguments& from, Call& call) {
    const bool identity = from.input.ConsumeBool();
    call.num_slots = from.mishap(32) ? from.number32(0, 4)
                     : identity      ? call.batch
                                     : from.input.ConsumeIntegralInRange<int32_t>(1, 3);
    if (identity) return;
    int32_t* const slots = from.memory.make<int32_t>(call.batch);
    const int32_t first = from.number32(0, 2);
    if (call.batch > 0 && call.batch <= 64)
        for (int32_t b = 0; b < call.batch; ++b)
            slots[b] = from.mishap(32) ? from.number32(0, 3)
                                       : static_cast<int32_t>((int64_t{first} + b) % std::max(call.num_slots, 1));
    call.sequences = from.address(slots);
}

// A count for each sequence. Of a batch that is too large for memory it is an address at which nothing can be read.
int32_t* counts(Arguments& from, int32_t batch, int64_t low, int64_t high) {
    int32_t* const counts = from.memory.make<int32_t>(batch);
    if (batch > 0 && batch <= 64)
        for (int32_t b = 0; b < batch; ++b)
            counts[b] = from.number32(static_cast<int32_t>(low), static_cast<int32_t>(high));
    return counts;
}

int64_t largest(const int32_t* counts, int32_t batch) {
    return batch > 0 && batch <= 64 ? *std::max_element(counts, counts + batch) : 0;
}

void shape(Arguments& from, mustafar_attention& attention) {
    attention.batch = from.number32(0, 2);
    slots(from, attention);
    attention.num_kv_heads = from.number32(1, 2);
    attention.num_heads = from.mishap() ? from.number32(1, 4) : from.multiple(attention.num_kv_heads);
    attention.num_queries = from.number32(0, 3);
    attention.num_fresh = from.mishap() ? from.number32(0, 3) : from.input.ConsumeBool() ? attention.num_queries : 0;
    attention.tail_capacity = from.number32(0, 40);
    attention.max_tokens = from.number32(100, 2000);
    attention.sliding_window = from.input.ConsumeBool() ? 0 : from.number32(0, 50);
    attention.scale = from.mishap() ? from.input.ConsumeFloatingPoint<float>() : 0.125f;
    const mustafar_format format = from.format(from.number32(MUSTAFAR_LAYOUT_FIXED, MUSTAFAR_LAYOUT_OFFSETS));
    attention.keys.format = attention.values.format = format;
    if (from.mishap()) {
        attention.values.format = from.format(format.layout);
    } else if (from.input.ConsumeBool()) {  // formats of their own
        attention.values.format = from.format(format.layout);
        attention.values.format.head_dim = format.head_dim;
        attention.values.format.dtype = format.dtype;
        if (keeps_all(attention.values.format)) attention.values.format.keep = format.head_dim;
    } else if (format.layout == MUSTAFAR_LAYOUT_FIXED && !keeps_all(format)) {
        attention.values.format.keep = from.number32(1, 64);
    }
}

// Whether a valid call would walk so many tokens that it takes too long for a fuzzer.
bool lengthy(const mustafar_attention& attention) {
    return largest(attention.lengths, attention.num_slots) > 4096;
}

// What chooses the channels of keys and values.
void selection(Arguments& from, mustafar_append& append) {
    const mustafar_format& keys = append.keys.format;
    append.key_importance = from.address(from.importance(keys, append.num_slots, append.num_kv_heads));
    append.value_importance =
        from.address(from.importance(append.values.format, append.num_slots, append.num_kv_heads));
    append.bitmap_tokens = from.mishap() ? from.number32(0, 200) : 96;
    const wide rows = times(wide{append.batch} * append.num_kv_heads, append.bitmap_tokens);
    if (append.key_importance == nullptr || from.mishap()) append.key_bitmap = from.address(from.bitmap(keys, rows));
    if (append.value_importance == nullptr || from.mishap())
        append.value_bitmap = from.address(from.bitmap(append.values.format, rows));
}

// Query, output, tail and fresh tokens, workspace.
void tensors(Arguments& from, mustafar_attention& attention, const mustafar_context& context) {
    const int32_t head_dim = attention.keys.format.head_dim;
    const int element = element_bytes(attention.keys.format.dtype);
    attention.query = from.dense(attention.batch, attention.num_heads, attention.num_queries, head_dim, element);
    attention.output = from.dense(attention.batch, attention.num_heads, attention.num_queries, head_dim, element);
    attention.tail_keys =
        from.dense(attention.num_slots, attention.num_kv_heads, attention.tail_capacity, head_dim, element);
    attention.tail_values =
        from.dense(attention.num_slots, attention.num_kv_heads, attention.tail_capacity, head_dim, element);
    attention.fresh_keys = from.dense(attention.batch, attention.num_kv_heads, attention.num_fresh, head_dim, element);
    attention.fresh_values =
        from.dense(attention.batch, attention.num_kv_heads, attention.num_fresh, head_dim, element);
    if (from.input.ConsumeBool())
        attention.log_sum_exp =
            from.address(from.memory.make<float>(wide{attention.batch} * attention.num_heads * attention.num_queries));
    int64_t bytes = 0;
    mustafar_attention_workspace(&context, &attention, &bytes);
    attention.workspace_bytes = from.mishap() ? from.number(0, 65536) : bytes;
    // Nobody can see that less memory is there than a caller says, so what is needed is there.
    const bool believable = attention.workspace_bytes <= 65536;
    attention.workspace = from.address(from.memory.make<char>(believable ? attention.workspace_bytes : bytes));
}

}  // namespace

void workspace(Arguments& from) {
    mustafar_context context = from.context();
    context.num_threads = from.number32(0, 4096);
    mustafar_attention attention{};
    shape(from, attention);
    int64_t bytes = -1;
    if (mustafar_attention_workspace(&context, &attention, &bytes) == MUSTAFAR_STATUS_OK && bytes < 0) __builtin_trap();
}

void attention(Arguments& from) {
    const mustafar_context context = from.context();
    mustafar_attention attention{};
    shape(from, attention);
    attention.compressed = counts(from, attention.num_slots, 0, 64);
    int32_t* const lengths = counts(from, attention.num_slots, 0, 3);
    if (attention.num_slots > 0 && attention.num_slots <= 64)
        for (int32_t b = 0; b < attention.num_slots; ++b) {
            const int64_t tokens = int64_t{lengths[b]} + attention.compressed[b] +
                                   (attention.tail_capacity > 0 ? from.input.ConsumeIntegralInRange<int>(0, 40) : 0);
            lengths[b] = static_cast<int32_t>(std::clamp<int64_t>(tokens, INT_MIN, INT_MAX));
        }
    attention.lengths = lengths;
    if (from.input.ConsumeBool())
        attention.query_counts = from.address(counts(from, attention.batch, 0, std::max(attention.num_queries, 0)));
    const int64_t compressed = largest(attention.compressed, attention.num_slots);
    const mustafar_format keys = attention.keys.format, values = attention.values.format;
    attention.keys = from.blocks(keys, attention.num_slots, attention.num_kv_heads, compressed);
    attention.values = from.blocks(values, attention.num_slots, attention.num_kv_heads, compressed);
    attention.key_factors = from.key_factors(keys, attention.num_slots, attention.num_kv_heads);
    tensors(from, attention, context);
    if (from.memory.possible() && !lengthy(attention)) mustafar_attention_forward(&context, &attention);
}

mustafar_append appended(Arguments& from) {
    mustafar_append append{};
    append.batch = from.number32(0, 2);
    slots(from, append);
    append.num_kv_heads = from.number32(1, 2);
    // Mostly few, for the same reason; what is in the cache may fall due as well.
    append.num_tokens = from.input.ConsumeIntegralInRange<int>(0, 3) == 0 ? from.number32(0, 70) : from.number32(0, 3);
    append.lookahead = from.number32(0, 1);
    append.group_size = from.mishap() ? from.number32(1, 64) : 32;
    append.local_window = from.number32(0, 40);
    append.tail_capacity = from.mishap() ? from.number32(0, 128) : 32 * from.input.ConsumeIntegralInRange<int>(1, 4);
    append.max_tokens = from.number32(100, 200);
    append.lengths = counts(from, append.num_slots, 0, 60);
    int32_t* const compressed = counts(from, append.num_slots, 0, 1);
    if (append.num_slots > 0 && append.num_slots <= 64)
        for (int32_t b = 0; b < append.num_slots; ++b)
            if (compressed[b] == 1 && !from.mishap()) compressed[b] = 32;
    append.compressed = compressed;
    if (from.input.ConsumeBool())
        append.counts = from.address(counts(from, append.batch, 0, std::max(append.num_tokens, 0)));
    append.new_lengths = from.memory.make<int32_t>(append.num_slots);
    append.new_compressed = from.input.ConsumeBool() ? from.memory.make<int32_t>(append.num_slots) : nullptr;
    const mustafar_format format = from.format(MUSTAFAR_LAYOUT_FIXED);
    const int64_t tokens = largest(append.lengths, append.num_slots) + append.num_tokens;
    append.keys = from.blocks(format, append.num_slots, append.num_kv_heads, tokens);
    append.values = from.blocks(format, append.num_slots, append.num_kv_heads, tokens);
    append.key_factors = from.key_factors(format, append.num_slots, append.num_kv_heads);
    const int element = element_bytes(format.dtype);
    append.new_keys = from.dense(append.batch, append.num_kv_heads, append.num_tokens, format.head_dim, element);
    append.new_values = from.dense(append.batch, append.num_kv_heads, append.num_tokens, format.head_dim, element);
    append.tail_keys =
        from.dense(append.num_slots, append.num_kv_heads, append.tail_capacity, format.head_dim, element);
    append.tail_values =
        from.dense(append.num_slots, append.num_kv_heads, append.tail_capacity, format.head_dim, element);
    selection(from, append);
    return append;
}

void append(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_append append = appended(from);
    if (from.memory.possible() && append.num_tokens <= 4096) mustafar_append_tokens(&context, &append);
}

void cache(Arguments& from) {
    const mustafar_context context = from.context();
    constexpr int32_t capacity = 96;
    mustafar_append append{};
    const int sequences = from.input.ConsumeIntegralInRange<int>(0, 7);  // mostly one of one head
    append.batch = sequences < 6 ? 1 : 2;
    append.num_kv_heads = sequences < 4 ? 1 : 2;
    slots(from, append);
    append.group_size = 32;
    append.local_window = from.input.ConsumeIntegralInRange<int>(0, 40);
    append.tail_capacity = (append.local_window + 31) / 32 * 32 + append.group_size;
    append.max_tokens = capacity;
    const mustafar_format format = from.format(MUSTAFAR_LAYOUT_FIXED);
    append.keys = from.blocks(format, append.num_slots, append.num_kv_heads, capacity);
    append.values = from.blocks(format, append.num_slots, append.num_kv_heads, capacity);
    append.key_factors = from.key_factors(format, append.num_slots, append.num_kv_heads);
    selection(from, append);
    const int element = element_bytes(format.dtype);
    const auto tail = [&] {
        return from.dense(append.num_slots, append.num_kv_heads, append.tail_capacity, format.head_dim, element);
    };
    append.tail_keys = tail();
    append.tail_values = tail();
    if (append.num_slots < 0 || append.num_slots > 64) return;
    std::vector<int32_t> lengths(static_cast<size_t>(append.num_slots) + 1), compressed = lengths;
    for (int step = from.input.ConsumeIntegralInRange<int>(1, 4); step > 0; --step) {
        append.num_tokens = from.input.ConsumeIntegralInRange<int>(0, step > 2 ? 40 : 3);
        append.lookahead = from.input.ConsumeIntegralInRange<int>(0, 1);
        append.counts = from.input.ConsumeBool() ? counts(from, append.batch, 0, append.num_tokens) : nullptr;
        append.new_keys = from.dense(append.batch, append.num_kv_heads, append.num_tokens, format.head_dim, element);
        append.new_values = from.dense(append.batch, append.num_kv_heads, append.num_tokens, format.head_dim, element);
        std::vector<int32_t> new_lengths = lengths, new_compressed = compressed;
        append.lengths = lengths.data();
        append.compressed = compressed.data();
        append.new_lengths = new_lengths.data();
        append.new_compressed = new_compressed.data();
        if (!from.memory.possible() || mustafar_append_tokens(&context, &append) != MUSTAFAR_STATUS_OK) return;
        lengths = new_lengths;
        compressed = new_compressed;
    }
    mustafar_attention attention{};
    attention.batch = append.batch;
    attention.num_slots = append.num_slots;
    attention.sequences = append.sequences;
    attention.num_kv_heads = append.num_kv_heads;
    attention.num_heads = append.num_kv_heads * from.input.ConsumeIntegralInRange<int>(1, 3);
    attention.num_queries = 1;
    attention.tail_capacity = append.tail_capacity;
    attention.max_tokens = capacity;
    attention.scale = 0.125f;
    attention.lengths = lengths.data();
    attention.compressed = compressed.data();
    attention.keys = append.keys;
    attention.values = append.values;
    attention.key_factors = append.key_factors;
    tensors(from, attention, context);
    attention.tail_keys = append.tail_keys;
    attention.tail_values = append.tail_values;
    if (!from.memory.possible()) return;
    if (mustafar_attention_forward(&context, &attention) != MUSTAFAR_STATUS_OK) return;
    from.corrupt_blocks();
    from.corrupt_blocks();
    mustafar_attention_forward(&context, &attention);
}

}  // namespace mustafar_fuzz
