/*
 * The process's OpenMP runtime, if it has one. torch's worker threads spin for milliseconds after each of its parallel
 * regions; separate threads would compete with them for the same cores. A region started through the runtime that
 * torch uses, from the same thread, runs on those same workers.
 */
#pragma once

namespace mustafar {

// Runs call(data) on several threads at once, including the caller's, and returns when all have finished.
using ParallelRegion = void (*)(void (*call)(void*), void* data, int threads);

// Searches the loaded libraries for a runtime; null if there is none yet. Once found, it stays loaded.
ParallelRegion find_openmp();

}  // namespace mustafar
