// SPMD thread pool: every thread runs the same function over its own static share, with spin barriers in between.
//
// A step has hundreds of barriers of well under a microsecond, so threads spin first. They sleep when it lasts: an
// idle server costs nothing, and on a machine with more runnable threads than cores the thread that everyone waits for
// gets a core. Sleeping, not sched_yield: since Linux 6.6 each yield gives away a slice of the thread's fair share, and a
// few hundred of them leave a step next to nothing (docs/LOG.md has the figures).
#pragma once

#include <atomic>
#include <chrono>
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

// A counter that threads wait on: they spin for a while, then sleep until it moves.
class WaitWord {
 public:
  explicit WaitWord(std::chrono::microseconds spin) : spin_(spin) {}

  std::uint32_t load() const { return word_.load(std::memory_order_acquire) & ~kSleepers; }

  // Moves the count on, for one thread at a time. What it wrote before is seen by those who see the new count.
  void advance() {
    const std::uint32_t next = load() + kStep;
    if (word_.exchange(next, std::memory_order_acq_rel) & kSleepers) wake();
  }

  // The count, once it is another than `seen`.
  std::uint32_t await_change(std::uint32_t seen) {
    const std::uint32_t now = load();
    return now != seen ? now : await_slowly(seen);
  }

 private:
  static constexpr std::uint32_t kSleepers = 1, kStep = 2;  // the lowest bit: somebody sleeps
  std::uint32_t await_slowly(std::uint32_t seen);
  void wake();

  const std::chrono::microseconds spin_;
  std::atomic<int> num_brief_spins_{0};
  alignas(64) std::atomic<std::uint32_t> word_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Barrier {
 public:
  Barrier(int num_threads, std::chrono::microseconds spin) : num_threads_(num_threads), generation_(spin) {}
  void wait() {
    if (num_threads_ == 1) return;
    const std::uint32_t generation = generation_.load();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.advance();
    } else {
      generation_.await_change(generation);
    }
  }

 private:
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  WaitWord generation_;
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

  const int num_threads_;
  Barrier barrier_;
  WaitWord epoch_;
  bool stop_ = false;
  Erased body_ = nullptr;
  void* context_ = nullptr;
  std::mutex calls_;
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
