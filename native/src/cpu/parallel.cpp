#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/openmp.h"

namespace mustafar {
namespace {

struct Job {
    Job(const std::function<void(int64_t, int)>& call, int64_t count) : work(call), items(count) {}

    const std::function<void(int64_t, int)>& work;
    int64_t items;
    std::atomic<int64_t> next{0};
    std::atomic<int> next_thread{0};
    std::mutex mutex;
    std::exception_ptr failure;

    void run() noexcept {
        const int thread = next_thread.fetch_add(1, std::memory_order_relaxed);
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
            try {
                work(item, thread);
            } catch (...) {
                next.store(items, std::memory_order_relaxed);
                const std::lock_guard lock(mutex);
                if (!failure) failure = std::current_exception();
            }
        }
    }
};

ParallelRegion openmp() {
    static std::atomic<ParallelRegion> found{nullptr};
    static std::atomic<unsigned> misses{0};
    ParallelRegion region = found.load(std::memory_order_acquire);
    // torch may be loaded after the first calls, so keep looking, less and less often.
    if (region == nullptr) {
        const unsigned miss = misses.fetch_add(1, std::memory_order_relaxed);
        if ((miss & (miss - 1)) == 0) {
            region = find_openmp();
            found.store(region, std::memory_order_release);
        }
    }
    return region;
}

// Workers for processes without an OpenMP runtime. One job at a time; they sleep between jobs.
class Pool {
public:
    void run(Job& job, int threads) {
        const std::lock_guard one_job(jobs_);
        {
            std::unique_lock lock(mutex_);
            grow(threads - 1);
            // A thread that is still starting owns memory that leak checkers cannot trace yet: no call returns before.
            idle_.wait(lock, [this] { return started_ == workers_.size(); });
            job_ = &job;
            wanted_ = std::min(threads - 1, (int)workers_.size());
        }
        wake_.notify_all();
        job.run();
        std::unique_lock lock(mutex_);
        wanted_ = 0;  // workers that did not wake in time are not needed any more
        idle_.wait(lock, [this] { return running_ == 0; });
        job_ = nullptr;
    }

private:
    // The system may refuse threads, for lack of memory or by a limit. The available ones share the work, and the next
    // call tries again.
    void grow(int workers) {
        try {
            while ((int)workers_.size() < workers) workers_.emplace_back([this] { serve(); });
        } catch (const std::system_error&) {
        } catch (const std::bad_alloc&) {
        }
    }

    void serve() {
        std::unique_lock lock(mutex_);
        ++started_;
        idle_.notify_all();
        for (;;) {
            wake_.wait(lock, [this] { return wanted_ > 0; });
            --wanted_;
            ++running_;
            Job* const job = job_;
            lock.unlock();
            job->run();
            lock.lock();
            if (--running_ == 0) idle_.notify_all();
        }
    }

    std::mutex jobs_, mutex_;
    std::condition_variable wake_, idle_;
    std::vector<std::thread> workers_;
    size_t started_ = 0;
    Job* job_ = nullptr;
    int wanted_ = 0, running_ = 0;
};

}  // namespace

int thread_count(int32_t num_threads, int64_t items) {
    static const int processors = (int)std::max(1u, std::thread::hardware_concurrency());
    // Far more threads than processors only cost memory, and an OpenMP runtime terminates the process if it is refused
    // one.
    static const int most = std::max(64, 4 * processors);
    const int threads = num_threads > 0 ? std::min(num_threads, most) : processors;
    return (int)std::max<int64_t>(1, std::min<int64_t>(threads, items));
}

void parallel_for(int threads, int64_t items, const std::function<void(int64_t, int)>& work) {
    if (items <= 0) return;
    Job job(work, items);
    if (threads <= 1) {
        job.run();
    } else if (const ParallelRegion region = openmp()) {
        region([](void* data) { static_cast<Job*>(data)->run(); }, &job, threads);
    } else {
        static Pool* pool = new Pool;  // never destroyed: workers may outlive static destructors of the process
        pool->run(job, threads);
    }
    if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace mustafar
