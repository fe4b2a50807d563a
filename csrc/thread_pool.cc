#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace realm {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Long enough for the slowest op's imbalance on an idle machine, short against a scheduler slice.
constexpr int kSpinsBeforeYield = 4000;
// After a step, workers stay awake about this many yields: the next step usually follows within 200 us.
constexpr int kYieldsBeforePark = 200;

void pin_to(int index) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || seen++ != index) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
#else
  (void)index;
#endif
}

}  // namespace

ScopedFlushDenormals::ScopedFlushDenormals() {
#if defined(__x86_64__)
  saved_ = _mm_getcsr();
  _mm_setcsr(static_cast<unsigned>(saved_) | 0x8040u);  // FTZ, DAZ
#elif defined(__aarch64__)
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
#else
  saved_ = 0;
#endif
}

ScopedFlushDenormals::~ScopedFlushDenormals() {
#if defined(__x86_64__)
  _mm_setcsr(static_cast<unsigned>(saved_));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(saved_));
#endif
}

void SpinBarrier::spin_while(const std::atomic<std::uint32_t>& value, std::uint32_t seen) {
  for (int i = 0; value.load(std::memory_order_acquire) == seen; ++i) {
    if (i < kSpinsBeforeYield)
      pause_cpu();
    else
      std::this_thread::yield();
  }
}

ThreadPool::ThreadPool(int num_threads, bool pin) : num_threads_(num_threads), barrier_(num_threads) {
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread, pin] { work(thread, pin); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(parking_);
    stop_ = true;
    epoch_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(Erased body, void* context) {
  std::lock_guard<std::mutex> one_caller(calls_);
  ScopedFlushDenormals flush;
  if (num_threads_ == 1) return body(context, 0);
  body_ = body;
  context_ = context;
  // Sequentially consistent with the worker's (announce parked, look at epoch): one of the two sees the other.
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (num_parked_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(parking_); }
    wake_.notify_all();
  }
  body(context, 0);
  barrier();
}

std::uint32_t ThreadPool::await_epoch(std::uint32_t seen) {
  std::uint32_t now;
  for (int i = 0; i < kSpinsBeforeYield + kYieldsBeforePark; ++i) {
    now = epoch_.load(std::memory_order_acquire);
    if (now != seen) return now;
    if (i < kSpinsBeforeYield)
      pause_cpu();
    else
      std::this_thread::yield();
  }
  std::unique_lock<std::mutex> lock(parking_);
  num_parked_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return (now = epoch_.load(std::memory_order_seq_cst)) != seen; });
  num_parked_.fetch_sub(1, std::memory_order_relaxed);
  return now;
}

void ThreadPool::work(int thread, bool pin) {
  if (pin) pin_to(thread);
  ScopedFlushDenormals flush;
  for (std::uint32_t seen = 0;;) {
    seen = await_epoch(seen);
    if (stop_) return;
    body_(context_, thread);
    barrier();
  }
}

}  // namespace realm
