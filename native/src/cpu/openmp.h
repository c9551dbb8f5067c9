/*
 * The process's OpenMP runtime, if it has one. torch's worker threads spin for milliseconds after each of its parallel
 * regions; threads of our own would compete with them for the same cores. A region started through the runtime that
 * torch uses, from the same thread, runs on those very workers.
 */
#pragma once

namespace mustafar {

// Runs call(data) on some threads at once, the caller's among them, and returns when all have.
using ParallelRegion = void (*)(void (*call)(void*), void* data, int threads);

// Looks for a runtime among the libraries that are loaded; null if there is none yet. One that was found stays loaded.
ParallelRegion find_openmp();

}  // namespace mustafar
