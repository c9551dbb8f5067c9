// Times decode attention of one sequence over every kind of cache on this processor; not a test. Formats take turns, and
// each is divided by the dense cache of the same dtype in the same round.
//   mustafar_benchmark_attention [tokens] [threads] [rounds] [variant]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "data.h"
#include "mustafar/mustafar.h"

namespace {

constexpr int32_t head_dim = 128, kv_heads = 8, group = 4;
constexpr int32_t page_blocks = 2;  // groups of 64 tokens, as the caches have by default

struct Format {
    const char* name;
    int32_t value_format, pattern, keep;  // keep 0: a dense cache
};
constexpr Format formats[] = {
    {"dense", 0, MUSTAFAR_PATTERN_ALL, 0},
    {"all", MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_PATTERN_ALL, 128},
    {"all int8", MUSTAFAR_VALUE_FORMAT_INT8, MUSTAFAR_PATTERN_ALL, 128},
    {"all int4", MUSTAFAR_VALUE_FORMAT_INT4, MUSTAFAR_PATTERN_ALL, 128},
    {"64", MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_PATTERN_UNSTRUCTURED, 64},
    {"64 int8", MUSTAFAR_VALUE_FORMAT_INT8, MUSTAFAR_PATTERN_UNSTRUCTURED, 64},
    {"64 int4", MUSTAFAR_VALUE_FORMAT_INT4, MUSTAFAR_PATTERN_UNSTRUCTURED, 64},
    {"40", MUSTAFAR_VALUE_FORMAT_NATIVE, MUSTAFAR_PATTERN_UNSTRUCTURED, 40},
    {"40 int8", MUSTAFAR_VALUE_FORMAT_INT8, MUSTAFAR_PATTERN_UNSTRUCTURED, 40},
    {"40 int4", MUSTAFAR_VALUE_FORMAT_INT4, MUSTAFAR_PATTERN_UNSTRUCTURED, 40},
};

void expect_ok(int32_t status) {
    if (status == MUSTAFAR_STATUS_OK) return;
    std::fprintf(stderr, "%s\n", mustafar_last_error());
    std::exit(1);
}

// A cache of one sequence: keys and values of a page take turns in a slab, as MustafarCache places them.
class Cache {
public:
    Cache(const mustafar_context& context, const Format& format, int32_t dtype, int32_t tokens, const Memory& keys,
          const Memory& values, const Memory& query)
        : context_(context), length_(tokens), output_(kv_heads * group * head_dim * element_bytes(dtype)) {
        attention_.batch = attention_.num_slots = attention_.num_queries = 1;
        attention_.num_heads = kv_heads * group;
        attention_.num_kv_heads = kv_heads;
        attention_.tail_capacity = tokens;
        attention_.max_tokens = tokens;
        attention_.scale = 0.088f;
        attention_.lengths = &length_;
        attention_.compressed = &compressed_;
        attention_.query = {query.as(), 0, head_dim, head_dim};
        attention_.output = {output_.as(), 0, head_dim, head_dim};
        attention_.tail_keys = {keys.as(), 0, int64_t{tokens} * head_dim, head_dim};
        attention_.tail_values = {values.as(), 0, int64_t{tokens} * head_dim, head_dim};
        const bool packed = format.keep > 0;
        mustafar_blocks blocks{};
        blocks.format = {head_dim, dtype, format.value_format, format.pattern, 0, 0, packed ? format.keep : head_dim};
        blocks.page_blocks = page_blocks;
        attention_.keys = attention_.values = blocks;
        if (packed) {
            compressed_ = tokens;
            const int32_t pages = (tokens / MUSTAFAR_BLOCK_TOKENS + page_blocks - 1) / page_blocks;
            int64_t block_bytes = 0;
            expect_ok(mustafar_block_bytes(&blocks.format, &block_bytes));
            const int64_t run = page_blocks * block_bytes;
            blocks.slab_pages = pages;
            blocks.slab_count = 1;
            blocks.page_capacity = pages;
            blocks.page_bytes = 2 * run;
            blocks.head_stride = 2 * run * pages;
            blocks.slab_bytes = kv_heads * blocks.head_stride + MUSTAFAR_PAGE_PADDING;
            slab_ = std::make_unique<Memory>(blocks.slab_bytes, 64);
            address_ = slab_->as();
            for (int32_t page = 0; page < pages; ++page) pages_.push_back(page);
            blocks.slabs = &address_;
            blocks.pages = pages_.data();
            attention_.keys = attention_.values = blocks;
            attention_.keys.format.order = MUSTAFAR_ORDER_KEY_QUADS;
            attention_.values.format.order = MUSTAFAR_ORDER_VALUE_QUADS;
            attention_.values.base = run;
            expect_ok(mustafar_compress(&context_, 1, kv_heads, tokens, &attention_.tail_keys, nullptr, nullptr,
                                        nullptr, &attention_.keys));
            expect_ok(mustafar_compress(&context_, 1, kv_heads, tokens, &attention_.tail_values, nullptr, nullptr,
                                        nullptr, &attention_.values));
        }
        expect_ok(mustafar_attention_workspace(&context_, &attention_, &attention_.workspace_bytes));
        workspace_ = std::make_unique<Memory>(attention_.workspace_bytes, 64);
        attention_.workspace = workspace_->as();
    }
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    // Microseconds of a step, the mean of a few.
    double time(int steps) const {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < steps; ++i) expect_ok(mustafar_attention_forward(&context_, &attention_));
        return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / steps;
    }

private:
    mustafar_context context_;
    mustafar_attention attention_{};
    int32_t length_, compressed_ = 0;
    Memory output_;
    std::unique_ptr<Memory> slab_, workspace_;
    void* address_ = nullptr;
    std::vector<int32_t> pages_;
};

double median(std::vector<double> numbers) {
    std::sort(numbers.begin(), numbers.end());
    return numbers[numbers.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
    const auto argument = [&](int i, int otherwise) {
        return i < argc ? static_cast<int>(std::strtol(argv[i], nullptr, 10)) : otherwise;
    };
    const int32_t tokens = argument(1, 8192), rounds = argument(3, 9);
    mustafar_context context = context_of(argument(4, MUSTAFAR_CPU_VARIANT_AUTO));
    context.num_threads = argument(2, 2);
    std::printf("1 sequence, %d KV heads, %d query heads, head_dim %d, %d tokens, %d threads, variant %d of %d\n",
                kv_heads, kv_heads * group, head_dim, tokens, context.num_threads, context.cpu_variant,
                mustafar_default_cpu_variant());
    for (const int32_t dtype : {MUSTAFAR_DTYPE_F32, MUSTAFAR_DTYPE_F16, MUSTAFAR_DTYPE_BF16}) {
        const int64_t numbers = int64_t{kv_heads} * tokens * head_dim;
        const Memory keys(numbers * element_bytes(dtype)), values(numbers * element_bytes(dtype)),
            query(kv_heads * group * head_dim * element_bytes(dtype));
        const auto any = [] {
            return static_cast<float>(static_cast<int32_t>(random_bits() % 2001) - 1000) / 500.0f + 0.0009f;
        };
        for (int64_t i = 0; i < numbers; ++i) store(keys.as(), i, dtype, any());
        for (int64_t i = 0; i < numbers; ++i) store(values.as(), i, dtype, any());
        for (int64_t i = 0; i < kv_heads * group * head_dim; ++i) store(query.as(), i, dtype, any());
        std::vector<std::unique_ptr<Cache>> caches;
        for (const Format& format : formats)
            caches.push_back(std::make_unique<Cache>(context, format, dtype, tokens, keys, values, query));
        std::vector<std::vector<double>> times(std::size(formats)), ratios(std::size(formats));
        const int steps = std::max(1, 20000 / tokens);
        for (int round = 0; round < rounds; ++round)
            for (size_t i = 0; i < caches.size(); ++i) {
                caches[i]->time(1);
                times[i].push_back(caches[i]->time(steps));
                ratios[i].push_back(times[0].back() / times[i].back());
            }
        for (size_t i = 0; i < caches.size(); ++i)
            std::printf("%-5s %-9s %9.0f us at best %9.0f us median   %.2f x dense\n",
                        dtype == MUSTAFAR_DTYPE_F32   ? "f32"
                        : dtype == MUSTAFAR_DTYPE_F16 ? "f16"
                                                      : "bf16",
                        formats[i].name, *std::min_element(times[i].begin(), times[i].end()), median(times[i]),
                        median(ratios[i]));
    }
}
