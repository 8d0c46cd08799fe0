#include "sampler.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace rela {
namespace {

constexpr size_t kSerialBytes = size_t{512}
                                << 10;  // below this, waking helpers costs more than it saves

std::vector<std::unique_lock<std::mutex>> lock_calls(const std::vector<Replay*>& replays) {
  std::vector<std::unique_lock<std::mutex>> locks;
  for (Replay* r : replays) locks.emplace_back(r->call_mutex);
  return locks;
}

}  // namespace

// ---------------------------------------------------------------------------------------- Pool

Pool::~Pool() {
  for (auto& b : free_) {
    if (!b->owner) std::free(b->data);
  }
}

std::shared_ptr<Block> Pool::share(std::unique_ptr<Block> block) {
  return {block.release(),
          [pool = shared_from_this()](Block* b) { pool->put(std::unique_ptr<Block>(b)); }};
}

std::shared_ptr<Block> Pool::take(size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const bool fits = (*it)->capacity >= bytes && (*it)->capacity <= 2 * bytes + 4096;
      if (fits && (best == free_.end() || (*it)->owner)) best = it;
    }
    if (best != free_.end()) {
      auto block = std::move(*best);
      free_.erase(best);
      return share(std::move(block));
    }
  }
  auto block = std::make_unique<Block>();
  block->capacity = std::max<size_t>(64, (bytes + 63) / 64 * 64);
  block->data = static_cast<uint8_t*>(std::aligned_alloc(64, block->capacity));
  if (!block->data) throw std::bad_alloc();
  return share(std::move(block));
}

void Pool::donate(uint8_t* data, size_t bytes, std::shared_ptr<void> owner) {
  auto block = std::make_unique<Block>();
  block->data = data;
  block->capacity = bytes;
  block->owner = std::move(owner);
  put(std::move(block));
}

void Pool::put(std::unique_ptr<Block> block) {
  std::unique_ptr<Block> dropped;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() >=
        max_free_) {  // the oldest unused plain block has a size that is no longer requested
      auto it = std::find_if(free_.begin(), free_.end(), [](auto& b) { return !b->owner; });
      if (it == free_.end()) it = free_.begin();
      dropped = std::move(*it);
      free_.erase(it);
    }
    free_.push_back(std::move(block));
  }
  if (dropped && !dropped->owner) std::free(dropped->data);
}

// ---------------------------------------------------------------------------------------- Team

void Team::start() {
  stopping_ = false;
  for (int i = 0; i < helpers_wanted_; ++i) helpers_.emplace_back([this] { help(); });
}

void Team::stop() {
  const std::lock_guard<std::mutex> busy(busy_);  // after the loop that is under way
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : helpers_) t.join();
  helpers_.clear();
}

void Team::after_fork_in_child() {
  new (&busy_) std::mutex;
  new (&mutex_) std::mutex;
  new (&wake_) std::condition_variable;
  new (&done_) std::condition_variable;
  new (&helpers_) std::vector<std::thread>;  // the old one is leaked: its threads cannot be joined
}

void Team::help() {
  uint64_t seen = 0;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
    }
    work();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--active_ == 0) done_.notify_one();
  }
}

void Team::work() {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= n_) return;
    (*body_)(begin, std::min(begin + grain_, n_));
  }
}

void Team::run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
  if (!busy || helpers_wanted_ < 1 || n <= grain) return body(0, n);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return body(0, n);
  }
  if (helpers_.empty()) start();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    n_ = n;
    grain_ = grain;
    next_.store(0, std::memory_order_relaxed);
    active_ = static_cast<int>(helpers_.size());
    ++generation_;
  }
  wake_.notify_all();
  work();
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return active_ == 0; });
}

// ------------------------------------------------------------------------------------- Sampler

Sampler::Sampler(std::vector<std::shared_ptr<Replay>> replays, int depth, int num_threads,
                 bool whole_episodes)
    : replays_(std::move(replays)),
      depth_(depth),
      whole_episodes_(whole_episodes),
      pool_(std::make_shared<Pool>(static_cast<size_t>(std::max(0, depth)) + 4)),
      team_(num_threads) {
  if (depth < 0 || depth > 64) {
    throw std::invalid_argument("prefetch must be in [0, 64], got " + std::to_string(depth));
  }
  if (num_threads < 1 || num_threads > 256) {
    throw std::invalid_argument("num_threads must be in [1, 256], got " +
                                std::to_string(num_threads));
  }
  for (const auto& r : replays_) lock_order_.push_back(r.get());
  std::sort(lock_order_.begin(), lock_order_.end());
  if (std::adjacent_find(lock_order_.begin(), lock_order_.end()) != lock_order_.end()) {
    throw std::invalid_argument("a joint sampler needs different replays, got the same one twice");
  }
}

Sampler::~Sampler() { terminate(); }

void Sampler::terminate() {
  const std::lock_guard<std::mutex> ending(ending_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    drop_queue();
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  team_.stop();
}

void Sampler::after_fork_in_child() {
  for (Replay* r : lock_order_) {
    new (&r->call_mutex) std::mutex;
    new (&r->data_mutex) std::shared_mutex;  // a thread that is gone may have held it
  }
  new (&ending_) std::mutex;
  new (&mutex_) std::mutex;
  new (&wake_) std::condition_variable;
  new (&done_) std::condition_variable;
  new (&thread_) std::thread;
  drop_queue();
  team_.after_fork_in_child();
}

void Sampler::drop_queue() {
  for (const JobPtr& j : ahead_) j->cancelled = true;
  ahead_.clear();
}

JobPtr Sampler::make_job(const std::vector<int64_t>& batches, int horizon, const Job* follow) {
  auto job = std::make_shared<Job>();
  int64_t total = 0;
  int64_t T = 0;
  for (size_t i = 0; i < replays_.size(); ++i) {
    Replay& r = *replays_[i];
    Job::Part part;
    part.batch = batches[i];
    part.version = r.version;
    Rng rng = r.rng;
    if (follow) rng.set_state(follow->parts[i].after);
    part.before = rng.state();
    part.rows = whole_episodes_ ? r.draw_episodes(rng, batches[i], T, job->seq_lens)
                                : r.draw(rng, batches[i]);
    part.after = rng.state();
    total += static_cast<int64_t>(part.rows.size());
    job->parts.push_back(std::move(part));
  }
  job->lead = whole_episodes_ ? Shape{T, batches[0]} : Shape{total};
  job->layout = replays_[0]->layout(total, horizon);
  job->block = pool_->take(job->layout.bytes);
  return job;
}

bool Sampler::still_valid(const Job& job, const std::vector<int64_t>& batches, int horizon) const {
  if (job.layout.horizon != horizon) return false;
  for (size_t i = 0; i < replays_.size(); ++i) {
    const Job::Part& p = job.parts[i];
    if (p.batch != batches[i] || p.version != replays_[i]->version ||
        p.before != replays_[i]->rng.state()) {
      return false;
    }
  }
  return true;
}

void Sampler::gather(Job& job, bool in_worker) {
  // The caller's own gathering is protected by the call mutexes it holds.
  std::vector<std::shared_lock<std::shared_mutex>> locks;
  if (in_worker) {
    for (Replay* r : lock_order_) locks.emplace_back(r->data_mutex);
    for (size_t i = 0; i < replays_.size(); ++i) {
      if (job.parts[i].version != replays_[i]->version) job.cancelled = true;
    }
    if (job.cancelled) return;
  }
  int64_t row0 = 0;
  for (size_t i = 0; i < replays_.size(); ++i) {
    const Rows& rows = job.parts[i].rows;
    const auto n = static_cast<int64_t>(rows.size());
    const Replay& replay = *replays_[i];
    uint8_t* base = job.block->data;
    auto body = [&](int64_t begin, int64_t end) {
      replay.gather(rows, begin, end, job.layout, row0, base);
    };
    if (job.layout.bytes < kSerialBytes) {
      body(0, n);
    } else {
      team_.run(n, 16, body);
    }
    row0 += n;
  }
}

JobPtr Sampler::sample(const std::vector<int64_t>& batches, int horizon) {
  if (batches.size() != replays_.size()) {
    throw std::invalid_argument("sample: expected " + std::to_string(replays_.size()) +
                                " batch sizes, got " + std::to_string(batches.size()));
  }
  if (whole_episodes_ && horizon != 1) {
    throw std::invalid_argument("sample: the horizon is " + std::to_string(horizon) +
                                ", expected 1 of a replay that draws whole episodes");
  }
  const auto calls = lock_calls(lock_order_);
  for (size_t i = 0; i < replays_.size(); ++i) replays_[i]->check_sampling(batches[i], horizon);
  for (size_t i = 1; i < replays_.size(); ++i) {
    const auto a = replays_[0]->layout(1).fields, b = replays_[i]->layout(1).fields;
    const bool same =
        a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
          return x.group == y.group && x.field == y.field;
        });
    if (!same)
      throw std::invalid_argument(
          "sample: the joint replays hold different keys, shapes or dtypes");
  }

  JobPtr job;
  if (depth_ > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ahead_.empty() && still_valid(*ahead_.front(), batches, horizon)) {
      job = ahead_.front();
      ahead_.pop_front();
    } else {
      drop_queue();
    }
  }
  const bool was_ahead = job != nullptr;
  if (!job) job = make_job(batches, horizon, nullptr);
  bool mine = !was_ahead;
  if (was_ahead) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (job->state == Job::State::queued) {  // the worker has not come to it yet
      job->state = Job::State::running;
      mine = true;
    }
  }
  if (depth_ > 0) top_up(batches, *job);
  if (mine) {
    gather(*job, false);
  } else {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return job->state == Job::State::done; });
    if (job->error) std::rethrow_exception(job->error);
  }
  for (size_t i = 0; i < replays_.size(); ++i) replays_[i]->rng.set_state(job->parts[i].after);
  return job;
}

void Sampler::top_up(const std::vector<int64_t>& batches, const Job& last) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
    const Job* follow = ahead_.empty() ? &last : ahead_.back().get();
    while (static_cast<int>(ahead_.size()) < depth_) {
      ahead_.push_back(make_job(batches, last.layout.horizon, follow));
      follow = ahead_.back().get();
    }
    if (!thread_.joinable()) start_worker();
  }
  wake_.notify_one();
}

void Sampler::start_worker() {
  thread_ = std::thread([this] { worker(); });
}

void Sampler::worker() {
  for (;;) {
    JobPtr job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      auto queued = [&] {
        return std::find_if(ahead_.begin(), ahead_.end(),
                            [](const JobPtr& j) { return j->state == Job::State::queued; });
      };
      wake_.wait(lock, [&] { return stopping_ || queued() != ahead_.end(); });
      if (stopping_) return;
      job = *queued();
      job->state = Job::State::running;
    }
    try {
      gather(*job, true);
    } catch (...) {
      job->error = std::current_exception();
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job->state = Job::State::done;
    }
    done_.notify_all();
  }
}

JobPtr Sampler::collect(Rows rows, Shape lead) {
  auto job = std::make_shared<Job>();
  Replay& r = *replays_[0];
  job->layout = r.layout(static_cast<int64_t>(rows.size()));
  job->lead = std::move(lead);
  job->block = pool_->take(job->layout.bytes);
  r.gather(rows, 0, static_cast<int64_t>(rows.size()), job->layout, 0, job->block->data);
  return job;
}

}  // namespace rela
