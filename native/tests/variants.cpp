// Every instruction set variant that the processor has against the scalar one: what is stored must be equal bit for bit,
// what is computed must agree to rounding.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "mustafar/mustafar.h"

namespace {

constexpr int block_tokens = MUSTAFAR_BLOCK_TOKENS;
constexpr float infinity = std::numeric_limits<float>::infinity();

struct Case {
    int32_t variant, dtype, head_dim, keep, layout, group, queries;
    int64_t tokens;
};

[[noreturn]] void stop(const Case& c, const char* what, int line) {
    std::fprintf(stderr,
                 "variants.cpp:%d: %s (%s)\nvariant %d, dtype %d, head_dim %d, keep %d, layout %d, group %d, queries %d, "
                 "tokens %lld\n",
                 line, what, mustafar_last_error(), c.variant, c.dtype, c.head_dim, c.keep, c.layout, c.group,
                 c.queries, static_cast<long long>(c.tokens));
    std::exit(1);
}

#define EXPECT(condition) \
    if (!(condition)) stop(c, #condition, __LINE__)
#define EXPECT_OK(call) EXPECT((call) == MUSTAFAR_STATUS_OK)

// Bytes at an address that is a multiple of 64, filled with ones: NaN in every dtype.
class Memory {
public:
    explicit Memory(int64_t bytes) : bytes_(static_cast<size_t>(bytes)), data_(::operator new(bytes_, alignment)) {
        std::memset(data_, 0xff, bytes_);
    }
    ~Memory() { ::operator delete(data_, alignment); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    template <class T = void>
    T* as() const {
        return static_cast<T*>(data_);
    }
    bool operator==(const Memory& other) const { return std::memcmp(data_, other.data_, bytes_) == 0; }

private:
    static constexpr std::align_val_t alignment{64};
    size_t bytes_;
    void* data_;
};

int element_bytes(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? 4 : 2;
}

int words(const Case& c) {
    return (c.head_dim + 31) / 32;
}

float f16_to_f32(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31  ? (fraction ? std::numeric_limits<float>::quiet_NaN() : infinity)
                            : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                            : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

float load(const void* data, int64_t index, int32_t dtype) {
    if (dtype == MUSTAFAR_DTYPE_F32) return static_cast<const float*>(data)[index];
    const uint16_t bits = static_cast<const uint16_t*>(data)[index];
    return dtype == MUSTAFAR_DTYPE_F16 ? f16_to_f32(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
}

// Truncates: any number of the dtype will do. Halves are made of numbers in their normal range.
void store(void* data, int64_t index, int32_t dtype, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (dtype == MUSTAFAR_DTYPE_F32)
        static_cast<float*>(data)[index] = value;
    else
        static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(
            dtype == MUSTAFAR_DTYPE_BF16 ? bits >> 16
                                         : (bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - 0x38000000u) >> 13);
}

std::mt19937 random_bits;

enum class Content { numbers, specials };

// Numbers between 2^-6 and 2 of either sign. Specials: in every fifth token infinities, NaNs, subnormals and zeros of
// either sign among them, in every seventh all channels equal, the others any bits at all.
void fill(void* data, int64_t tokens, const Case& c, Content content) {
    const int bytes = element_bytes(c.dtype);
    const uint32_t sign = bytes == 4 ? 0x80000000u : 0x8000u;
    const uint32_t top = c.dtype == MUSTAFAR_DTYPE_F32 ? 0x7f800000u : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x7c00u : 0x7f80u;
    for (int64_t t = 0; t < tokens; ++t) {
        const uint32_t same = static_cast<uint32_t>(random_bits());
        for (int channel = 0; channel < c.head_dim; ++channel) {
            const int64_t i = t * c.head_dim + channel;
            const uint32_t random = static_cast<uint32_t>(random_bits());
            if (content == Content::numbers) {
                const float value = std::ldexp(1.0f + static_cast<float>(random & 0xffffu) / 65536.0f,
                                               -static_cast<int>(random >> 16 & 7u) + 1);
                store(data, i, c.dtype, random >> 31 ? -value : value);
                continue;
            }
            const uint32_t specials[] = {0u,       sign,           top,          top | sign,
                                         top + 1u, (top + 1) | sign, top | top >> 1, 1u,
                                         sign | 1u, top - 1u,      2u,           random};
            const uint32_t bits = t % 5 == 0 ? specials[random % std::size(specials)] : t % 7 == 0 ? same : random;
            if (bytes == 4)
                static_cast<uint32_t*>(data)[i] = bits;
            else
                static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits);
        }
    }
}

mustafar_context context_of(int32_t variant) {
    return {MUSTAFAR_DEVICE_CPU, 0, 1, variant, nullptr};
}

mustafar_format format_of(const Case& c, int32_t layout) {
    return {.head_dim = c.head_dim,
            .dtype = c.dtype,
            .value_format = MUSTAFAR_VALUE_FORMAT_NATIVE,
            .pattern = MUSTAFAR_PATTERN_UNSTRUCTURED,
            .layout = layout,
            .order = MUSTAFAR_ORDER_PLAIN,
            .keep = layout == MUSTAFAR_LAYOUT_FIXED ? c.keep : 0};
}

// A contiguous tensor [1, heads, tokens, width].
mustafar_dense dense(const void* data, int64_t tokens, int64_t width) {
    return {const_cast<void*>(data), 0, tokens * width, width};
}

int64_t blocks_of(const Case& c) {
    return (c.tokens + block_tokens - 1) / block_tokens;
}

// One head's tokens, compressed by a variant in the case's layout.
struct Compressed {
    Compressed(const Case& c, int32_t variant, const Memory& source, const std::vector<uint32_t>& bitmap) {
        const mustafar_context context = context_of(variant);
        const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
        blocks.format = format_of(c, c.layout);
        blocks.page_blocks = static_cast<int32_t>(blocks_of(c));
        blocks.page_capacity = 1;
        if (c.layout == MUSTAFAR_LAYOUT_FIXED) {
            EXPECT_OK(mustafar_block_bytes(&blocks.format, &blocks.page_bytes));
            blocks.head_stride = blocks.page_bytes * blocks_of(c);
            blocks.page_bytes = blocks.head_stride + MUSTAFAR_PAGE_PADDING;
        } else {
            offsets.resize(static_cast<size_t>(blocks_of(c)) + 1);
            EXPECT_OK(mustafar_offsets(&context, &blocks.format, 1, 1, c.tokens, bitmap.data(), offsets.data(),
                                       &blocks.page_bytes));
            blocks.offsets = offsets.data();
        }
        page = std::make_unique<Memory>(blocks.page_bytes);
        address = page->as();
        blocks.pages = &address;
        const uint32_t* given = c.layout == MUSTAFAR_LAYOUT_FIXED ? nullptr : bitmap.data();
        EXPECT_OK(mustafar_compress(&context, 1, 1, c.tokens, &tensor, given, &blocks));
    }
    Compressed(const Compressed&) = delete;
    Compressed& operator=(const Compressed&) = delete;

    mustafar_blocks blocks{};
    std::vector<uint32_t> offsets;
    std::unique_ptr<Memory> page;
    void* address = nullptr;
};

std::vector<uint32_t> pruned(const Case& c, int32_t variant, const Memory& source) {
    const mustafar_context context = context_of(variant);
    const mustafar_format format = format_of(c, MUSTAFAR_LAYOUT_FIXED);
    const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
    std::vector<uint32_t> bitmap(static_cast<size_t>(c.tokens * words(c)));
    EXPECT_OK(mustafar_prune(&context, &format, 1, 1, c.tokens, &tensor, bitmap.data()));
    return bitmap;
}

// Rows of none, all and any channels.
std::vector<uint32_t> any_bitmap(const Case& c) {
    std::vector<uint32_t> bitmap(static_cast<size_t>(c.tokens * words(c)));
    for (int64_t t = 0; t < c.tokens; ++t)
        for (int channel = 0; channel < c.head_dim; ++channel)
            if (t % 9 != 3 && (t % 9 == 5 || random_bits() % 3 == 0))
                bitmap[static_cast<size_t>(t * words(c) + channel / 32)] |= 1u << channel % 32;
    return bitmap;
}

void tensors(const Case& c, Content content) {
    const int64_t bytes = c.tokens * c.head_dim * element_bytes(c.dtype);
    const Memory source(bytes);
    fill(source.as(), c.tokens, c, content);
    const std::vector<uint32_t> bitmap = pruned(c, MUSTAFAR_CPU_VARIANT_SCALAR, source);
    EXPECT(bitmap == pruned(c, c.variant, source));
    const std::vector<uint32_t> chosen = c.layout == MUSTAFAR_LAYOUT_FIXED ? bitmap : any_bitmap(c);
    const Compressed expected(c, MUSTAFAR_CPU_VARIANT_SCALAR, source, chosen), actual(c, c.variant, source, chosen);
    EXPECT(expected.offsets == actual.offsets);
    EXPECT(*expected.page == *actual.page);  // bytes that hold no value were not written either
    // From the start, and from within a block.
    for (const int64_t first : {int64_t{0}, c.tokens / 2 + 1}) {
        const Memory expected_rows(bytes), actual_rows(bytes);
        const mustafar_dense expected_tensor = dense(expected_rows.as(), c.tokens, c.head_dim);
        const mustafar_dense actual_tensor = dense(actual_rows.as(), c.tokens, c.head_dim);
        const mustafar_context scalar = context_of(MUSTAFAR_CPU_VARIANT_SCALAR), context = context_of(c.variant);
        EXPECT_OK(
            mustafar_decompress(&scalar, 1, 1, first, c.tokens - first, &expected.blocks, &expected_tensor));
        EXPECT_OK(mustafar_decompress(&context, 1, 1, first, c.tokens - first, &actual.blocks, &actual_tensor));
        EXPECT(expected_rows == actual_rows);
    }
}
