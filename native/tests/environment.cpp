// MUSTAFAR_CPU_VARIANT: a name that the processor has is used, any other one is an error that lists those that it has. Each
// case is a process of its own, since a variant is chosen once.
#if defined(_WIN32)
#include <process.h>
#else
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

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
    return mustafar_prune(&context, &format, 1, 1, 1, &source, nullptr, bitmap);
}

void remove_variable() {
#if defined(_WIN32)
    _putenv_s("MUSTAFAR_CPU_VARIANT", "");
#else
    unsetenv("MUSTAFAR_CPU_VARIANT");
#endif
}

// On Windows an empty one is none.
void set_variable(const std::string& value) {
#if defined(_WIN32)
    _putenv_s("MUSTAFAR_CPU_VARIANT", value.c_str());
#else
    setenv("MUSTAFAR_CPU_VARIANT", value.c_str(), 1);
#endif
}

// As a child process: 0 if what happens is what should.
int check(const std::string& wanted, int32_t expected) {
    set_variable(wanted);
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

std::vector<std::string> cases() {
    std::vector<std::string> result{"", "auto", "avx1024", "AVX2", "scalar ", std::string(1000, 'x'), "%s%n"};
    result.insert(result.end(), std::begin(names) + MUSTAFAR_CPU_VARIANT_SCALAR, std::end(names));
    return result;
}

// The variant that a case should lead to, or AUTO if it should be refused.
int32_t expected_of(const std::string& wanted, int32_t chosen) {
    if (wanted.empty() || wanted == "auto") return chosen;
    for (int32_t v = MUSTAFAR_CPU_VARIANT_SCALAR; v < static_cast<int32_t>(std::size(names)); ++v)
        if (wanted == names[v] && is_available(v)) return v;
    return MUSTAFAR_CPU_VARIANT_AUTO;
}

// What a process of its own does: checks a case, for which `chosen` is the variant that is taken without the variable; or,
// if that is not known yet (negative), finds it out.
int child(int index, int chosen) {
    if (chosen < 0) return mustafar_default_cpu_variant();
    const std::string wanted = cases()[static_cast<size_t>(index)];
    return check(wanted, expected_of(wanted, chosen));
}

// The exit status of such a process; -1 if it crashes.
int run(const char* program, int index, int chosen) {
#if defined(_WIN32)
    const std::string quoted = '"' + std::string(program) + '"', first = std::to_string(index),
                      second = std::to_string(chosen);
    return static_cast<int>(_spawnl(_P_WAIT, program, quoted.c_str(), first.c_str(), second.c_str(), nullptr));
#else
    (void)program;
    const pid_t process = fork();
    if (process == 0) _exit(child(index, chosen));
    int status = 0;
    return process > 0 && waitpid(process, &status, 0) == process && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
#endif
}

}  // namespace

int main(int count, char** arguments) {
    if (count == 3)
        return child(static_cast<int>(std::strtol(arguments[1], nullptr, 10)),
                     static_cast<int>(std::strtol(arguments[2], nullptr, 10)));
    remove_variable();
    const int chosen = run(arguments[0], 0, -1);
    bool right = chosen > MUSTAFAR_CPU_VARIANT_AUTO && is_available(chosen);
    for (int i = 0; i < static_cast<int>(cases().size()); ++i) right = run(arguments[0], i, chosen) == 0 && right;
    std::puts(right ? "MUSTAFAR_CPU_VARIANT is followed or refused" : "MUSTAFAR_CPU_VARIANT is not followed");
    return right ? 0 : 1;
}
