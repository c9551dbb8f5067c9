// MUSTAFAR_CPU_VARIANT: a name that the processor has is used, any other one is an error that lists those that it has. Each
// case is a process of its own, since a variant is chosen once.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>

#include "mustafar/mustafar.h"

namespace {

const char* const names[] = {"auto", "scalar", "avx2", "avx512", "avx512bf16", "neon", "avx512core"};

bool is_available(int32_t variant) {
    return mustafar_cpu_variants() >> variant & 1;
}

// A call that needs a variant.
int32_t prune() {
    const mustafar_context context{MUSTAFAR_DEVICE_CPU, 0, 1, MUSTAFAR_CPU_VARIANT_AUTO, nullptr};
    mustafar_format format{};  // f32, unstructured
    format.head_dim = format.keep = 64;
    float row[64] = {};
    const mustafar_dense source{row, 64, 64, 64};
    uint32_t bitmap[2];
    return mustafar_prune(&context, &format, 1, 1, 1, &source, bitmap);
}

// As a child process: 0 if what happens is what should.
int check(const std::string& wanted, int32_t expected) {
    setenv("MUSTAFAR_CPU_VARIANT", wanted.c_str(), 1);
    for (int call = 0; call < 2; ++call) {
        const int32_t status = prune();
        const std::string text = mustafar_last_error();
        const int32_t variant = mustafar_default_cpu_variant();
        const bool served = expected != MUSTAFAR_CPU_VARIANT_AUTO;
        bool right = variant == expected && status == (served ? MUSTAFAR_STATUS_OK : MUSTAFAR_STATUS_UNSUPPORTED);
        right = right && (served ? text.empty() : text == mustafar_last_error());
        if (!served) {
            right = right && text.find("MUSTAFAR_CPU_VARIANT") != std::string::npos &&
                    text.find(wanted.substr(0, 40)) != std::string::npos;
            const std::string listed = text.substr(0, text.find("got"));
            for (int32_t v = MUSTAFAR_CPU_VARIANT_SCALAR; v < static_cast<int32_t>(std::size(names)); ++v) {
                const std::string name = names[v];
                const bool is_listed =
                    listed.find(name + ",") != std::string::npos || listed.find(name + ")") != std::string::npos;
                right = right && is_available(v) == is_listed;
            }
        }
        if (!right) {
            std::fprintf(stderr, "'%s': variant %d of %d, status %d: %s\n", wanted.c_str(), variant, expected, status,
                         text.c_str());
            return 1;
        }
    }
    return 0;
}

// What call returns, 0 ... 255, in a process of its own; -1 if that crashes.
template <class Call>
int in_child(const Call& call) {
    const pid_t child = fork();
    if (child == 0) _exit(call());
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool holds(const std::string& wanted, int32_t expected) {
    return in_child([&] { return check(wanted, expected); }) == 0;
}

}  // namespace

int main() {
    unsetenv("MUSTAFAR_CPU_VARIANT");
    bool right = true;
    for (int32_t v = MUSTAFAR_CPU_VARIANT_SCALAR; v < static_cast<int32_t>(std::size(names)); ++v)
        right = holds(names[v], is_available(v) ? v : int32_t{MUSTAFAR_CPU_VARIANT_AUTO}) && right;
    for (const std::string& wrong : {std::string("avx1024"), std::string("AVX2"), std::string("scalar "),
                                     std::string(1000, 'x'), std::string("%s%n")})
        right = holds(wrong, MUSTAFAR_CPU_VARIANT_AUTO) && right;
    const int chosen = in_child([] { return mustafar_default_cpu_variant(); });
    right = chosen > MUSTAFAR_CPU_VARIANT_AUTO && holds("", chosen) && holds("auto", chosen) && right;
    std::puts(right ? "MUSTAFAR_CPU_VARIANT is followed or refused" : "MUSTAFAR_CPU_VARIANT is not followed");
    return right ? 0 : 1;
}
