#include <windows.h>

#include <atomic>
#include <cstdint>

#include "cpu/openmp.h"

namespace mustafar {
namespace {

// The calls that compilers make of LLVM's and Intel's runtimes (kmp.h): ident_t, and a region's function with its arguments.
struct Location {
    int32_t reserved, flags, more_reserved[2];
    const char* source;
};
using Microtask = void (*)(int32_t* global_thread, int32_t* thread, void* argument);
using ThreadNumber = int32_t (*)(Location*);
using PushThreads = void (*)(Location*, int32_t global_thread, int32_t threads);
using Fork = void (*)(Location*, int32_t arguments, Microtask, ...);

struct Runtime {
    ThreadNumber thread_number;
    PushThreads push_threads;
    Fork fork;
};
std::atomic<const Runtime*> runtime{nullptr};

struct Call {
    void (*call)(void*);
    void* data;
};

void run(int32_t*, int32_t*, void* argument) {
    const Call& call = *static_cast<const Call*>(argument);
    call.call(call.data);
}

void region(void (*call)(void*), void* data, int threads) {
    constexpr int32_t made_by_compiler = 2;  // KMP_IDENT_KMPC
    static Location location{0, made_by_compiler, {0, 0}, ";mustafar;parallel_for;0;0;;"};
    const Runtime& found = *runtime.load(std::memory_order_acquire);
    Call argument{call, data};
    found.push_threads(&location, found.thread_number(&location), threads);
    found.fork(&location, 1, run, &argument);
}

template <class Function>
Function find(HMODULE library, const char* name) {
    return reinterpret_cast<Function>(reinterpret_cast<void*>(GetProcAddress(library, name)));
}

}  // namespace

ParallelRegion find_openmp() {
    // Intel's, which libtorch brings, LLVM's, and the one of Visual C++ with -openmp:llvm.
    for (const wchar_t* const name : {L"libiomp5md.dll", L"libomp.dll", L"libomp140.x86_64.dll"}) {
        HMODULE library = nullptr;
        if (GetModuleHandleExW(0, name, &library) == 0) continue;
        const Runtime found{find<ThreadNumber>(library, "__kmpc_global_thread_num"),
                            find<PushThreads>(library, "__kmpc_push_num_threads"),
                            find<Fork>(library, "__kmpc_fork_call")};
        if (found.thread_number != nullptr && found.push_threads != nullptr && found.fork != nullptr) {
            runtime.store(new Runtime(found), std::memory_order_release);  // once or twice in a process
            return region;
        }
        FreeLibrary(library);
    }
    return nullptr;
}

}  // namespace mustafar
