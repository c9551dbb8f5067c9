// Spreads independent work items over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace mustafar {

// Number of threads that a call with this context setting uses (0: one per processor), at most one per item.
int thread_count(int32_t num_threads, int64_t items);

// Calls work(item, thread) for every item 0 ... items - 1, thread in 0 ... threads - 1; items are handed out one by
// one, in order. The first exception stops further items and is rethrown here.
void parallel_for(int threads, int64_t items, const std::function<void(int64_t item, int thread)>& work);

}  // namespace mustafar
