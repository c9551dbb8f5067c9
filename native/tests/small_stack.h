// Runs a call of the library on a thread with a stack of 128 KB, as musl gives threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifndef _WIN32
#include <pthread.h>
#endif

// What the call returns. Sanitizers need more stack, and Windows gives threads more: there it runs on the caller's thread.
template <class Call>
int32_t on_small_stack(Call call) {
#if defined(_WIN32) || defined(MUSTAFAR_SANITIZED)
    return call();
#else
    struct Work {
        Call& call;
        int32_t status;
    } work{call, 0};
    const auto run = [](void* data) -> void* {
        Work& own = *static_cast<Work*>(data);
        own.status = own.call();
        return nullptr;
    };
    constexpr size_t stack_bytes = 128 * 1024;
    pthread_attr_t attributes;
    pthread_t thread;
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstacksize(&attributes, stack_bytes) != 0 ||
        pthread_create(&thread, &attributes, run, &work) != 0 || pthread_join(thread, nullptr) != 0) {
        std::fprintf(stderr, "no thread with a stack of %zu bytes\n", stack_bytes);
        std::exit(1);
    }
    pthread_attr_destroy(&attributes);
    return work.status;
#endif
}
