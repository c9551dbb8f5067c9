// A call that asks for more threads than the system gives runs with those that there are.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "mustafar/mustafar.h"

namespace {

constexpr int32_t heads = 8192, head_dim = 64, keep = 24;

std::vector<uint32_t> pruned(const std::vector<float>& rows, int32_t threads) {
    const mustafar_context context{MUSTAFAR_DEVICE_CPU, 0, threads, MUSTAFAR_CPU_VARIANT_AUTO, nullptr};
    const mustafar_format format{head_dim,
                                 MUSTAFAR_DTYPE_F32,
                                 MUSTAFAR_VALUE_FORMAT_NATIVE,
                                 MUSTAFAR_PATTERN_UNSTRUCTURED,
                                 MUSTAFAR_LAYOUT_FIXED,
                                 MUSTAFAR_ORDER_PLAIN,
                                 keep};
    const mustafar_dense source{const_cast<float*>(rows.data()), heads * head_dim, head_dim, head_dim};
    std::vector<uint32_t> bitmap(heads * head_dim / 32);
    if (mustafar_prune(&context, &format, 1, heads, 1, &source, nullptr, bitmap.data()) != MUSTAFAR_STATUS_OK) {
        std::fprintf(stderr, "%d threads: %s\n", threads, mustafar_last_error());
        std::exit(1);
    }
    return bitmap;
}

// No address space holds such a stack.
void refuse_threads(size_t stack_bytes) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (pthread_attr_setstacksize(&attributes, stack_bytes) != 0 || pthread_setattr_default_np(&attributes) != 0) {
        std::fprintf(stderr, "the size of threads' stacks can't be set\n");
        std::exit(1);
    }
    pthread_attr_destroy(&attributes);
}

}  // namespace

int main() {
    std::vector<float> rows(heads * head_dim);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 2654435761u % 1009) - 504.0f;
    const std::vector<uint32_t> expected = pruned(rows, 1);
    refuse_threads(size_t{1} << 48);
    bool same = pruned(rows, 4096) == expected;
    refuse_threads(size_t{1} << 20);
    same = pruned(rows, 3) == expected && same;  // two workers
    refuse_threads(size_t{1} << 48);
    same = pruned(rows, 4096) == expected && same;  // the same two
    std::puts(same ? "fewer threads give the same" : "fewer threads give another bitmap");
    return same ? 0 : 1;
}
