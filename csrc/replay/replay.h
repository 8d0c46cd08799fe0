// The replay proper: episodes in columns, the seeded generator, and the assembly of batches.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "episode.h"
#include "store.h"
#include "types.h"

namespace rela {

// xoshiro256** (Blackman and Vigna), seeded through splitmix64; one draw per sampled row.
class Rng {
 public:
  using State = std::array<uint64_t, 4>;

  explicit Rng(uint64_t seed);
  uint64_t next();
  // Uniform in [0, n): the high half of a 128-bit product; its bias is below n / 2^64.
  int64_t below(int64_t n) {
    __extension__ using u128 = unsigned __int128;
    return static_cast<int64_t>((static_cast<u128>(next()) * static_cast<u128>(n)) >> 64);
  }
  const State& state() const { return s_; }
  void set_state(const State& s) { s_ = s; }

 private:
  State s_{};
};

struct Options {
  int frame_stack = 1;  // for every observation key not named in `stacks`
  int nstep = 1;
  int64_t capacity = 1;  // episodes
  uint64_t seed = 1;
  std::map<std::string, int> stacks;
  bool newest_first =
      false;  // newest first with zeros before the start; else oldest first, clamped
  bool bootstrap_truncated = false;
  std::vector<std::string> save_only;  // stored, never sampled
  std::string storage;                 // directory of the scratch file; empty: RAM
};

constexpr int kLongest = 4096;  // steps of a window

// Where one output row comes from. t < 0: padding (zeros).
struct RowRef {
  int64_t step0 = 0, obs0 = 0;
  int32_t t = -1, len = 0;
  bool has_final = false;
};
using Rows = std::vector<RowRef>;

// Drawn transitions for a copy of the columns that is held elsewhere. Rows count from the first
// that this replay ever held: actions from step0, observations from obs0; `last` is the last
// observation's step, `len` the episode's steps.
struct Drawn {
  std::vector<int64_t> step0, obs0, t, last, len;
  std::vector<float> reward, bootstrap;
  std::vector<float> rewards;  // of a window's steps, zeros behind its episode's end
};

enum class Group : int {
  obs = 0,
  next_obs = 1,
  action = 2,
  reward = 3,
  bootstrap = 4,
  rewards = 5,  // windows only: of each step
  valid = 6     // windows only: 1 for steps of the episode, 0 behind its end
};

struct OutField {
  Group group = Group::obs;
  size_t column = 0;
  int stack = 1;
  Field field;  // shape of one output row
  size_t row_bytes = 0;
  size_t offset = 0;  // of the first row in the batch's block
};

struct Layout {
  std::vector<OutField> fields;
  int64_t rows = 0;
  size_t bytes = 0;
  int horizon = 1;                        // steps of a window; 1: transitions
  int span = 1;                           // steps to the next observation
  std::vector<float> weights, discounts;  // of returns and bootstraps over `span` steps
};

class Replay {
 public:
  explicit Replay(Options options);

  // --- called by API users, one at a time (the caller holds call_mutex) ---
  void add(const EpisodePtr& episode);
  int64_t size() const { return static_cast<int64_t>(episodes_.size() - head_); }
  int64_t num_add() const { return num_add_; }
  int64_t num_transitions() const;
  size_t nbytes() const;
  void check_sampling(int64_t batch, int horizon) const;
  Rows draw(Rng& rng, int64_t batch) const;  // uniform over transitions
  Rows draw_episodes(Rng& rng, int64_t batch, int64_t& T, std::vector<int32_t>& lens) const;
  Drawn draw_for_copy(int64_t batch, int horizon);  // the next batch; moves the generator
  std::array<int64_t, 2> live_span(Group g) const;  // first row, and one past the last
  Rows episode_rows(int64_t i) const;               // all steps of one episode
  Rows range_rows(int64_t a, int64_t b, int64_t& T, std::vector<int32_t>& lens) const;
  // `horizon` > 1: windows of so many steps, which end where their episode does.
  Layout layout(int64_t rows, int horizon = 1) const;

  struct EpisodeRow {
    int64_t step0 = 0, obs0 = 0;
    int32_t len = 0;
    bool terminated = false, truncated = false, has_final = false;
  };
  const EpisodeRow& episode(int64_t i) const;
  const Fields& obs_fields() const { return obs_fields_; }
  const Fields& action_fields() const { return action_fields_; }
  const Options& options() const { return options_; }
  bool empty_schema() const { return obs_fields_.empty(); }

  // What is needed to save everything but the rows.
  struct Snapshot {
    Fields obs, action;
    std::vector<std::array<int64_t, 4>> table;  // {len, terminated, truncated, has_final}
    int64_t steps = 0, obs_rows = 0, num_add = 0;
    uint64_t version = 0;
    float gamma = 0.0F;
    Rng::State rng{};
  };
  Snapshot snapshot() const;

  // Raw rows for saving: group obs / action / reward, live rows [begin, end) counted from the
  // oldest.
  int64_t live_rows(Group g) const;
  void read(Group g, size_t column, int64_t begin, int64_t end, uint8_t* dst) const;
  // Inverse of reading everything.
  void restore(const Views& obs, const Views& action, const View& reward,
               const std::vector<std::array<int64_t, 4>>& table, float gamma, int64_t num_add,
               const Rng::State& rng);
  void clear();

  // --- called by gathering threads (they hold data_mutex shared, or the caller holds call_mutex)
  // --- Writes rows [begin, end) of `rows` to output rows row0 + begin ...
  void gather(const Rows& rows, int64_t begin, int64_t end, const Layout& layout, int64_t row0,
              uint8_t* base) const;

  std::mutex call_mutex;                 // serialises API calls on this replay
  mutable std::shared_mutex data_mutex;  // unique while the contents change, shared while gathering
  uint64_t version = 0;                  // changes with the contents; guarded by data_mutex
  Rng rng;                               // guarded by call_mutex

 private:
  void adopt_schema(const Fields& obs, const Fields& action, float gamma);
  void check_episode(const EpisodeData& e) const;
  void evict_oldest();
  void wipe();
  RowRef ref(const EpisodeRow& e, int64_t t) const;
  static float bootstrap(const RowRef& r, const Layout& layout);
  float returns(const RowRef& r, const Layout& layout) const;
  float reward(const RowRef& r, int64_t ahead) const;
  void gather_step(const RowRef& r, const OutField& f, const Layout& layout, uint8_t* dst) const;
  Rows padded_rows(const std::vector<int64_t>& picks, int64_t& T, std::vector<int32_t>& lens) const;
  void gather_obs(const Rows& rows, int64_t begin, int64_t end, const OutField& f, int64_t span,
                  uint8_t* out) const;
  const Column& column(Group g, size_t i) const;

  Options options_;
  Fields obs_fields_, action_fields_;
  std::vector<int> stack_;     // per obs field
  std::vector<bool> sampled_;  // per obs field
  float gamma_ = 0.0F;
  std::vector<Column> obs_, action_, reward_;  // reward_: exactly one column
  std::vector<EpisodeRow> episodes_;           // live ones from head_
  std::vector<int64_t> starts_;                // step0 of each, for the binary search
  size_t head_ = 0;
  int64_t num_add_ = 0;
};

}  // namespace rela
