// Draws batches from one replay (or several, one after the other in the same batch), gathers them
// in parallel and, when asked, ahead of time.
//
// Indices are always drawn in the caller's thread. A batch made ahead remembers the generator state
// and the contents it was drawn from; it is handed out only if both are still the same when the
// caller asks, otherwise it is thrown away. So prefetching changes nothing but time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "replay.h"

namespace rela {

// Memory of one batch. `owner` keeps donated (for example page-locked) memory alive.
struct Block {
  uint8_t* data = nullptr;
  size_t capacity = 0;
  std::shared_ptr<void> owner;
};

// Recycles blocks: pages are faulted in once, not once per batch.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(size_t max_free) : max_free_(max_free) {}
  ~Pool();
  std::shared_ptr<Block> take(size_t bytes);
  void donate(uint8_t* data, size_t bytes, std::shared_ptr<void> owner);

 private:
  void put(std::unique_ptr<Block> block);
  std::shared_ptr<Block> share(std::unique_ptr<Block> block);

  const size_t max_free_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> free_;
};

// Helper threads for one parallel loop at a time; the caller works too.
class Team {
 public:
  explicit Team(int threads) : helpers_wanted_(threads - 1) {}
  ~Team() { stop(); }
  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);
  void stop();
  void after_fork_in_child();

 private:
  void start();
  void help();
  void work();

  const int helpers_wanted_;
  std::mutex busy_;  // one loop at a time; a second one runs in its own thread alone
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> helpers_;
  bool stopping_ = false;
  uint64_t generation_ = 0;
  int active_ = 0;
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t n_ = 0, grain_ = 1;
};

struct Job {
  struct Part {
    Rows rows;
    int64_t batch = 0;
    uint64_t version = 0;
    Rng::State before{}, after{};
  };
  enum class State { queued, running, done };

  std::vector<Part> parts;
  Layout layout;
  Shape lead;                     // leading axes of every output: {B}, or {T, N}
  std::vector<int32_t> seq_lens;  // {T, N} only
  std::shared_ptr<Block> block;
  State state = State::queued;
  std::atomic<bool> cancelled{false};
  std::exception_ptr error;
};
using JobPtr = std::shared_ptr<Job>;

class Sampler {
 public:
  // `whole_episodes`: draw episodes and return them time-major, zero padded.
  Sampler(std::vector<std::shared_ptr<Replay>> replays, int depth, int num_threads,
          bool whole_episodes);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // Called without the GIL. One batch size per replay; rows of the first replay come first.
  // `horizon` > 1: windows of so many steps.
  JobPtr sample(const std::vector<int64_t>& batches, int horizon = 1);
  // Rows given explicitly (from the first replay), gathered at once.
  JobPtr collect(Rows rows, Shape lead);
  // Stops all threads; sampling continues without them.
  void terminate();
  // Threads do not survive a fork: forget them and their locks, start new ones when needed.
  void after_fork_in_child();
  Pool& pool() { return *pool_; }
  int depth() const { return depth_; }

 private:
  JobPtr make_job(const std::vector<int64_t>& batches, int horizon, const Job* follow);
  bool still_valid(const Job& job, const std::vector<int64_t>& batches, int horizon) const;
  void gather(Job& job, bool in_worker);
  void top_up(const std::vector<int64_t>& batches, const Job& last);
  void drop_queue();
  void start_worker();
  void worker();

  std::vector<std::shared_ptr<Replay>> replays_;
  std::vector<Replay*> lock_order_;
  const int depth_;
  const bool whole_episodes_;
  std::shared_ptr<Pool> pool_;
  Team team_;

  std::mutex ending_;  // one terminate() at a time: a thread can be joined once
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<JobPtr> ahead_;  // in the order they will be asked for
  std::thread thread_;
  bool stopping_ = false;
};

}  // namespace rela
