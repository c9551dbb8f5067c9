// Native values: which channels a pattern keeps, the bytes of their blocks, and what is read back are, bit for bit, what the
// header and docs/format.md say. Every variant.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "cases.h"
#include "data.h"
#include "mustafar/mustafar.h"
#include "oracle.h"

namespace {

enum class Content { numbers, specials };

// Numbers between 2^-6 and 2 of either sign. Specials: in every fifth token infinities, NaNs, subnormals and zeros of
// either sign among them, in every seventh all channels equal, the others any bits at all.
void fill(void* data, int64_t tokens, const Case& c, Content content) {
    const int bytes = element_bytes(c.dtype);
    const uint32_t sign = bytes == 4 ? 0x80000000u : 0x8000u;
    const uint32_t top = c.dtype == MUSTAFAR_DTYPE_F32   ? 0x7f800000u
                         : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x7c00u
                                                         : 0x7f80u;
    for (int64_t t = 0; t < tokens; ++t) {
        const uint32_t same = random_bits();
        for (int channel = 0; channel < c.head_dim; ++channel) {
            const int64_t i = t * c.head_dim + channel;
            const uint32_t random = random_bits();
            if (content == Content::numbers) {
                const float value = std::ldexp(1.0f + static_cast<float>(random & 0xffffu) / 65536.0f,
                                               -static_cast<int>(random >> 16 & 7u) + 1);
                store(data, i, c.dtype, random >> 31 ? -value : value);
                continue;
            }
            const uint32_t specials[] = {
                0u, sign,      top,      top | sign, top + 1u, (top + 1) | sign, top | top >> 1,
                1u, sign | 1u, top - 1u, 2u,         random};
            const uint32_t bits = t % 5 == 0 ? specials[random % std::size(specials)] : t % 7 == 0 ? same : random;
            if (bytes == 4)
                static_cast<uint32_t*>(data)[i] = bits;
            else
                static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits);
        }
    }
}

std::vector<uint32_t> pruned_by_library(const Case& c, const Memory& source) {
    const mustafar_context context = context_of(c.variant);
    const mustafar_format format = format_of(c);
    const mustafar_dense tensor = dense(source.as(), c.tokens, c.head_dim);
    std::vector<uint32_t> bitmap(static_cast<size_t>(c.tokens * words(c)));
    EXPECT_OK(mustafar_prune(&context, &format, 1, 1, c.tokens, &tensor, nullptr, bitmap.data()));
    return bitmap;
}

void test(const Case& c, Content content) {
    const int64_t row = c.head_dim * element_bytes(c.dtype);
    const Memory source(c.tokens * row);
    fill(source.as(), c.tokens, c, content);
    const std::vector<uint32_t> bitmap = kept_channels(c, source, c.tokens);
    if (c.layout == MUSTAFAR_LAYOUT_FIXED && c.pattern != MUSTAFAR_PATTERN_MASK)
        EXPECT(pruned_by_library(c, source) == bitmap);

    const Tokens compressed(c, source, c.tokens, bitmap, nullptr);
    std::vector<uint8_t> expected = native_blocks(c, source, bitmap);
    expected.resize(static_cast<size_t>(compressed.blocks.slab_bytes), uint8_t{0xff});  // the padding was not written
    EXPECT(std::memcmp(compressed.memory->as(), expected.data(), expected.size()) == 0);

    const std::vector<uint8_t> rows = decompressed(c, source, bitmap);
    // From the start, and from within a block.
    for (const int64_t first : {int64_t{0}, c.tokens / 2 + 1}) {
        const mustafar_context context = context_of(c.variant);
        const Memory restored((c.tokens - first) * row);
        const mustafar_dense tensor = dense(restored.as(), c.tokens - first, c.head_dim);
        EXPECT_OK(mustafar_decompress(&context, 1, 1, first, c.tokens - first, &compressed.blocks, nullptr, &tensor));
        EXPECT(std::memcmp(restored.as(), rows.data() + first * row, static_cast<size_t>((c.tokens - first) * row)) ==
               0);
    }
}

void test_all(int32_t variant, int32_t dtype, int32_t head_dim) {
    Case c{variant,
           dtype,
           head_dim,
           MUSTAFAR_VALUE_FORMAT_NATIVE,
           MUSTAFAR_PATTERN_UNSTRUCTURED,
           MUSTAFAR_LAYOUT_FIXED,
           0,
           MUSTAFAR_ORDER_PLAIN,
           false};
    for (const Content content : {Content::numbers, Content::specials})
        for (const int64_t tokens : {2, 76, 77}) {
            c.tokens = tokens;
            c.layout = MUSTAFAR_LAYOUT_FIXED;
            c.pattern = MUSTAFAR_PATTERN_UNSTRUCTURED;
            for (const int32_t keep : {1, head_dim * 5 / 16, head_dim / 2, head_dim}) {
                c.keep = keep;
                test(c, content);
            }
            for (const int32_t pattern : {MUSTAFAR_PATTERN_BALANCED_KEYS, MUSTAFAR_PATTERN_BALANCED_VALUES})
                for (const int32_t of_16 : {5, 6, 7, 8}) {
                    c.pattern = pattern;
                    c.keep = head_dim * of_16 / 16;
                    if (head_dim % 64 == 0) test(c, content);
                }
            c.pattern = MUSTAFAR_PATTERN_MASK;
            for (const int32_t keep : {1, head_dim / 4, head_dim}) {
                c.keep = keep;
                test(c, content);
            }
            c.layout = MUSTAFAR_LAYOUT_OFFSETS;
            c.pattern = MUSTAFAR_PATTERN_UNSTRUCTURED;
            c.keep = 0;
            test(c, content);
        }
}

}  // namespace

int main() {
    for_all(test_all);
    std::puts("native values are stored as they are said to be");
}
