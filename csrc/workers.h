// Threads that share the work of one call, and are kept from call to call.
//
// A call lasts a fraction of a millisecond, and starting a thread for it, with memory of its own
// to be filled again, costs as much as the thread saves. Kept threads look for the next call
// actively for a moment, then sleep.
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace workers {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long to look before sleeping. Longer than the gap between two calls of an update: on a
// virtual machine a sleeping core takes a tenth of a millisecond to wake up.
constexpr std::chrono::microseconds kLook{1000};

// Until ready(): actively at first, then asleep (the thread that makes it ready must hold the
// mutex).
template <typename Ready>
void wait_for(std::mutex& mutex, std::condition_variable& changed, const Ready& ready) {
  const auto started = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() - started < kLook);
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, ready);
}

// Where `size` threads wait for each other, as often as they like.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}

  void wait() {
    if (size_ == 1) return;
    const int64_t turn = turn_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_ = 0;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        turn_ = turn + 1;
      }
      all_here_.notify_all();
    } else {
      wait_for(mutex_, all_here_, [&] { return turn_.load() != turn; });
    }
  }

 private:
  const int size_;
  std::atomic<int> arrived_{0};
  std::atomic<int64_t> turn_{0};
  std::mutex mutex_;
  std::condition_variable all_here_;
};

class Pool {
 public:
  // work(rank) for rank 0 (on the caller's thread) to size - 1, all at the same time. What one
  // of them throws is thrown here; no rank may wait for another one that can throw.
  void run(int size, const std::function<void(int)>& work) {
    if (size <= 1) return work(0);
    const std::lock_guard<std::mutex> one_call(calls_);
    for (; threads_ < size - 1; ++threads_) {
      std::thread([this, rank = threads_ + 1] { help(rank); }).detach();
    }
    error_ = nullptr;
    left_ = size - 1;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      size_ = size;
      ++turn_;
    }
    wake_.notify_all();
    guarded(work, 0);
    wait_for(mutex_, done_, [&] { return left_.load() == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void guarded(const std::function<void(int)>& work, int rank) {
    try {
      work(rank);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void help(int rank) {
    uint64_t seen = 0;
    for (;;) {
      const std::function<void(int)>* work = nullptr;
      wait_for(mutex_, wake_, [&] { return turn_.load() != seen; });
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        seen = turn_.load();
        if (rank < size_) work = work_;
      }
      if (work == nullptr) continue;  // a call for fewer
      guarded(*work, rank);
      if (left_.fetch_sub(1) == 1) {
        const std::lock_guard<std::mutex> lock(mutex_);  // not between look and sleep
        done_.notify_one();
      }
    }
  }

  std::mutex calls_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> turn_{0};
  std::atomic<int> left_{0};
  const std::function<void(int)>* work_ = nullptr;
  int size_ = 0;
  int threads_ = 0;
  std::exception_ptr error_;
};

// The process's pool, never destroyed: its threads sleep until the process ends. A forked child
// has none of them and starts with a new one.
inline Pool& pool() {
  static Pool* the = nullptr;
  static std::once_flag made;
  std::call_once(made, [] {
    the = new Pool;
    pthread_atfork(nullptr, nullptr, [] { the = new Pool; });
  });
  return *the;
}

}  // namespace workers
