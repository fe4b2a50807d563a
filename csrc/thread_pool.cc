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

// Over the slowest op's imbalance on a machine that is not quite idle: sleeping and waking costs a step more than spinning.
// When the scheduler has put two of our threads on one CPU, a barrier can cost this much.
constexpr std::chrono::microseconds kSpinInStep{300};
// The next step usually follows within this time: with drafts, or behind a server, Python takes 300 to 700 us.
constexpr std::chrono::microseconds kSpinBetweenSteps{1000};
// Where spinning did not help, the next waits sleep almost at once: who we wait for has probably no CPU.
constexpr std::chrono::microseconds kBriefSpin{2};
constexpr int kBriefSpins = 2;
constexpr int kPausesPerLook = 32;

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

std::uint32_t WaitWord::await_slowly(std::uint32_t seen) {
  const int num_brief = num_brief_spins_.load(std::memory_order_relaxed);
  const auto until = std::chrono::steady_clock::now() + (num_brief == 0 ? spin_ : kBriefSpin);
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const std::uint32_t now = load();
      if (now != seen) {
        if (num_brief != 0) num_brief_spins_.store(0, std::memory_order_relaxed);
        return now;
      }
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < until);
  num_brief_spins_.store(num_brief == 0 ? kBriefSpins : num_brief - 1, std::memory_order_relaxed);
  std::unique_lock<std::mutex> lock(mutex_);
  std::uint32_t word = seen;
  // Fails when the word has moved on, or when another thread sleeps already.
  word_.compare_exchange_strong(word, seen | kSleepers, std::memory_order_acq_rel);
  std::uint32_t now;
  changed_.wait(lock, [&] { return (now = load()) != seen; });
  return now;
}

void WaitWord::wake() {
  // Whoever has announced itself under the lock is waiting by the time that we get the lock.
  { std::lock_guard<std::mutex> lock(mutex_); }
  changed_.notify_all();
}

ThreadPool::ThreadPool(int num_threads, bool pin)
    : num_threads_(num_threads), barrier_(num_threads, kSpinInStep), epoch_(kSpinBetweenSteps) {
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread, pin] { work(thread, pin); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.advance();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(Erased body, void* context) {
  std::lock_guard<std::mutex> one_caller(calls_);
  ScopedFlushDenormals flush;
  if (num_threads_ == 1) return body(context, 0);
  body_ = body;
  context_ = context;
  epoch_.advance();
  body(context, 0);
  barrier();
}

void ThreadPool::work(int thread, bool pin) {
  if (pin) pin_to(thread);
  ScopedFlushDenormals flush;
  for (std::uint32_t seen = 0;;) {
    seen = epoch_.await_change(seen);
    if (stop_) return;
    body_(context_, thread);
    barrier();
  }
}

}  // namespace realm
