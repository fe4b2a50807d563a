// SPMD thread pool: every thread runs the same function over its own static share, with spin barriers in between.
//
// A step has hundreds of barriers of well under a microsecond, so threads spin during a step. Between steps they
// park, so that an idle server costs nothing. Spinning gives way to sched_yield when it lasts: on a machine with
// more runnable threads than cores, the thread that everyone waits for must get a core.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace realm {

// Denormals are zero in every thread that computes, or sums would differ by who computed them (and be slow).
class ScopedFlushDenormals {
 public:
  ScopedFlushDenormals();
  ~ScopedFlushDenormals();
  ScopedFlushDenormals(const ScopedFlushDenormals&) = delete;
  ScopedFlushDenormals& operator=(const ScopedFlushDenormals&) = delete;

 private:
  std::uint64_t saved_;
};

class SpinBarrier {
 public:
  explicit SpinBarrier(int num_threads) : num_threads_(num_threads) {}
  void wait() {
    if (num_threads_ == 1) return;
    const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
    } else {
      spin_while(generation_, generation);
    }
  }

 private:
  static void spin_while(const std::atomic<std::uint32_t>& value, std::uint32_t seen);

  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
};

class ThreadPool {
 public:
  // `pin`: bind thread i to the i-th CPU that this process may use (Linux); the calling thread is left alone.
  explicit ThreadPool(int num_threads, bool pin = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs `body(thread)` on every thread; the caller is thread 0. `body` must not throw. One caller at a time.
  template <class Body>
  void run(Body&& body) {
    run_erased([](void* context, int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Called by all threads from within `body`.
  void barrier() { barrier_.wait(); }

 private:
  using Erased = void (*)(void* context, int thread);
  void run_erased(Erased body, void* context);
  void work(int thread, bool pin);
  std::uint32_t await_epoch(std::uint32_t seen);

  const int num_threads_;
  SpinBarrier barrier_;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  std::atomic<int> num_parked_{0};
  bool stop_ = false;
  Erased body_ = nullptr;
  void* context_ = nullptr;
  std::mutex calls_, parking_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

// The share [begin, end) of `n` items that thread `thread` of `num_threads` takes.
struct Share {
  int begin, end;
};
inline Share share_of(int n, int thread, int num_threads) {
  return {static_cast<int>(static_cast<std::int64_t>(n) * thread / num_threads),
          static_cast<int>(static_cast<std::int64_t>(n) * (thread + 1) / num_threads)};
}

}  // namespace realm
