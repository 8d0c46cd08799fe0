#include "replay.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

namespace rela {
namespace {

constexpr size_t kAlign = 64;
constexpr int64_t kLookAhead = 8;

void prefetch_row(const uint8_t* p, size_t bytes) {
  const size_t lines = std::min<size_t>((bytes + 63) / 64, 4);
  for (size_t i = 0; i < lines; ++i) __builtin_prefetch(p + 64 * i);
}

}  // namespace

Rng::Rng(uint64_t seed) {
  for (uint64_t& s : s_) {
    uint64_t z = (seed += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    s = z ^ (z >> 31);
  }
}

uint64_t Rng::next() {
  auto rotl = [](uint64_t x, int k) { return (x << k) | (x >> (64 - k)); };
  const uint64_t out = rotl(s_[1] * 5, 7) * 9;
  const uint64_t t = s_[1] << 17;
  s_[2] ^= s_[0];
  s_[3] ^= s_[1];
  s_[1] ^= s_[2];
  s_[0] ^= s_[3];
  s_[2] ^= t;
  s_[3] = rotl(s_[3], 45);
  return out;
}

Replay::Replay(Options options) : rng(options.seed), options_(std::move(options)) {
  auto at_least_one = [](const std::string& name, int64_t v) {
    if (v < 1) throw std::invalid_argument(name + " must be at least 1, got " + std::to_string(v));
  };
  at_least_one("frame_stack", options_.frame_stack);
  at_least_one("capacity", options_.capacity);
  check_nstep_gamma(options_.nstep, 1.0);
  for (const auto& [key, k] : options_.stacks) at_least_one("stacks['" + key + "']", k);
}

void Replay::adopt_schema(const Fields& obs, const Fields& action, float gamma) {
  std::set<std::string> known;
  std::vector<int> stack;
  std::vector<bool> sampled;
  size_t chunk = Column::wanted_chunk_bytes(0);
  for (const Field& f : obs) {
    known.insert(f.name);
    const auto it = options_.stacks.find(f.name);
    stack.push_back(it == options_.stacks.end() ? options_.frame_stack : it->second);
    const auto& so = options_.save_only;
    sampled.push_back(std::find(so.begin(), so.end(), f.name) == so.end());
    if (sampled.back() && stack.back() > 1 && f.shape.empty()) {
      throw std::invalid_argument("observation '" + f.name + "' is a scalar and cannot be stacked");
    }
    chunk = std::max(chunk, Column::wanted_chunk_bytes(f.bytes()));
  }
  for (const Field& f : action) chunk = std::max(chunk, Column::wanted_chunk_bytes(f.bytes()));
  for (const auto& [key, k] : options_.stacks) {
    if (!known.count(key)) {
      throw std::invalid_argument("stacks names observation '" + key +
                                  "', which episodes do not have");
    }
  }
  auto arena = std::make_shared<Arena>(chunk, options_.storage);
  std::vector<Column> obs_columns, action_columns, reward_column;
  for (const Field& f : obs) obs_columns.emplace_back(f.bytes(), arena);
  for (const Field& f : action) action_columns.emplace_back(f.bytes(), arena);
  reward_column.emplace_back(sizeof(float), arena);

  obs_ = std::move(obs_columns);
  action_ = std::move(action_columns);
  reward_ = std::move(reward_column);
  obs_fields_ = obs;
  action_fields_ = action;
  stack_ = std::move(stack);
  sampled_ = std::move(sampled);
  gamma_ = gamma;
}

void Replay::check_episode(const EpisodeData& e) const {
  if (e.len < 1) throw std::invalid_argument("add: the episode has no steps");
  if (e.nstep != options_.nstep) {
    throw std::invalid_argument("add: the episode was made with nstep " + std::to_string(e.nstep) +
                                ", this replay has n_step " + std::to_string(options_.nstep));
  }
  if (options_.bootstrap_truncated && e.truncated && !e.terminated && !e.has_final) {
    throw std::invalid_argument(
        "add: bootstrap_truncated needs the final observation of a truncated episode "
        "(Episode.push_final_obs)");
  }
  if (obs_fields_.empty()) return;
  check_fields(obs_fields_, e.obs_fields, "add: observation");
  check_fields(action_fields_, e.action_fields, "add: action");
  if (e.gamma != gamma_) {
    throw std::invalid_argument("add: the episode was made with gamma " + std::to_string(e.gamma) +
                                ", earlier ones with " + std::to_string(gamma_));
  }
}

void Replay::evict_oldest() {
  const EpisodeRow& e = episodes_[head_];
  const int64_t step_end = e.step0 + e.len;
  const int64_t obs_end = e.obs0 + e.len + (e.has_final ? 1 : 0);
  for (Column& c : obs_) c.drop_before(obs_end);
  for (Column& c : action_) c.drop_before(step_end);
  for (Column& c : reward_) c.drop_before(step_end);
  ++head_;
  if (head_ > 64 && head_ * 2 > episodes_.size()) {
    const auto n = static_cast<std::ptrdiff_t>(head_);
    episodes_.erase(episodes_.begin(), episodes_.begin() + n);
    starts_.erase(starts_.begin(), starts_.begin() + n);
    head_ = 0;
  }
}

void Replay::add(const EpisodePtr& episode) {
  const EpisodeData& e = *episode;
  const std::unique_lock<std::shared_mutex> lock(data_mutex);
  check_episode(e);
  if (obs_fields_.empty()) adopt_schema(e.obs_fields, e.action_fields, e.gamma);
  ++version;
  while (size() >= options_.capacity) evict_oldest();

  const bool keep_final = options_.bootstrap_truncated && e.has_final && !e.terminated;
  const int64_t obs_rows = e.len + (keep_final ? 1 : 0);
  EpisodeRow row;
  row.step0 = reward_[0].end();
  row.obs0 = obs_[0].end();
  row.len = static_cast<int32_t>(e.len);
  row.terminated = e.terminated;
  row.truncated = e.truncated;
  row.has_final = keep_final;
  try {
    for (size_t i = 0; i < obs_.size(); ++i) obs_[i].append(e.obs[i].data(), obs_rows);
    for (size_t i = 0; i < action_.size(); ++i) action_[i].append(e.action[i].data(), e.len);
    reward_[0].append(reinterpret_cast<const uint8_t*>(e.reward.data()), e.len);
    starts_.push_back(row.step0);
    episodes_.push_back(row);
  } catch (...) {  // out of memory or disk: as if this episode had never come
    for (Column& c : obs_) c.truncate(row.obs0);
    for (Column& c : action_) c.truncate(row.step0);
    reward_[0].truncate(row.step0);
    starts_.resize(episodes_.size());
    throw;
  }
  ++num_add_;
}

int64_t Replay::num_transitions() const {
  return reward_.empty() ? 0 : reward_[0].end() - reward_[0].begin();
}

size_t Replay::nbytes() const {
  size_t n = episodes_.capacity() * sizeof(EpisodeRow) + starts_.capacity() * sizeof(int64_t);
  for (const auto* columns : {&obs_, &action_, &reward_}) {
    for (const Column& c : *columns) n += c.nbytes();
  }
  return n;
}

void Replay::check_sampling(int64_t batch, int horizon) const {
  if (batch < 1) {
    throw std::invalid_argument("sample: the batch size must be at least 1, got " +
                                std::to_string(batch));
  }
  if (horizon < 1 || horizon > kLongest) {
    throw std::invalid_argument("sample: the horizon must be in [1, " + std::to_string(kLongest) +
                                "], got " + std::to_string(horizon));
  }
  if (horizon > 1 && options_.nstep > 1) {
    throw std::invalid_argument("sample: the horizon is " + std::to_string(horizon) +
                                ", expected 1: this replay has n_step " +
                                std::to_string(options_.nstep));
  }
  if (size() == 0) throw std::runtime_error("sample: the replay is empty, add an episode first");
}

RowRef Replay::ref(const EpisodeRow& e, int64_t t) const {
  return {e.step0, e.obs0, static_cast<int32_t>(t), e.len, e.has_final};
}

Rows Replay::draw(Rng& generator, int64_t batch) const {
  const int64_t total = num_transitions();
  const int64_t first = reward_[0].begin();
  const auto live = starts_.begin() + static_cast<std::ptrdiff_t>(head_);
  Rows rows(static_cast<size_t>(batch));
  for (RowRef& r : rows) {
    const int64_t step = first + generator.below(total);
    const auto it = std::upper_bound(live, starts_.end(), step) - 1;
    const EpisodeRow& e = episodes_[static_cast<size_t>(it - starts_.begin())];
    r = ref(e, step - e.step0);
  }
  return rows;
}

const Replay::EpisodeRow& Replay::episode(int64_t i) const {
  if (i < 0 || i >= size()) {
    throw std::out_of_range("episode " + std::to_string(i) + " of a replay holding " +
                            std::to_string(size()));
  }
  return episodes_[head_ + static_cast<size_t>(i)];
}

Rows Replay::episode_rows(int64_t i) const {
  const EpisodeRow& e = episode(i);
  Rows rows;
  rows.reserve(static_cast<size_t>(e.len));
  for (int64_t t = 0; t < e.len; ++t) rows.push_back(ref(e, t));
  return rows;
}

Rows Replay::padded_rows(const std::vector<int64_t>& picks, int64_t& T,
                         std::vector<int32_t>& lens) const {
  T = 0;
  lens.clear();
  for (int64_t i : picks) {
    lens.push_back(episode(i).len);
    T = std::max<int64_t>(T, lens.back());
  }
  Rows rows;
  rows.reserve(static_cast<size_t>(T) * picks.size());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t i : picks) {
      const EpisodeRow& e = episode(i);
      rows.push_back(t < e.len ? ref(e, t) : RowRef{});
    }
  }
  return rows;
}

Rows Replay::draw_episodes(Rng& generator, int64_t batch, int64_t& T,
                           std::vector<int32_t>& lens) const {
  std::vector<int64_t> picks(static_cast<size_t>(batch));
  for (int64_t& p : picks) p = generator.below(size());
  return padded_rows(picks, T, lens);
}

Rows Replay::range_rows(int64_t a, int64_t b, int64_t& T, std::vector<int32_t>& lens) const {
  if (a < 0 || b <= a || b > size()) {
    throw std::out_of_range("get_range(" + std::to_string(a) + ", " + std::to_string(b) +
                            ") of a replay holding " + std::to_string(size()) + " episodes");
  }
  std::vector<int64_t> picks;
  for (int64_t i = a; i < b; ++i) picks.push_back(i);
  return padded_rows(picks, T, lens);
}

Layout Replay::layout(int64_t rows, int horizon) const {
  Layout out;
  out.rows = rows;
  out.horizon = horizon;
  out.span = horizon > 1 ? horizon : options_.nstep;
  out.weights = return_weights(gamma_, out.span);
  out.discounts = bootstrap_weights(gamma_, out.span);
  auto put = [&](Group g, size_t column, int stack, Field f) {
    if (stack > 1) f.shape[0] *= stack;
    OutField o;
    o.group = g;
    o.column = column;
    o.stack = stack;
    o.row_bytes = f.bytes();
    o.field = std::move(f);
    o.offset = out.bytes;
    out.bytes += (o.row_bytes * static_cast<size_t>(rows) + kAlign - 1) / kAlign * kAlign;
    out.fields.push_back(std::move(o));
  };
  for (const Group g : {Group::obs, Group::next_obs}) {
    for (size_t i = 0; i < obs_fields_.size(); ++i) {
      if (sampled_[i]) put(g, i, stack_[i], obs_fields_[i]);
    }
  }
  for (size_t i = 0; i < action_fields_.size(); ++i) {
    Field f = action_fields_[i];
    if (horizon > 1) f.shape.insert(f.shape.begin(), horizon);
    put(Group::action, i, 1, std::move(f));
  }
  put(Group::reward, 0, 1, {"reward", DType::f32, {}});
  put(Group::bootstrap, 0, 1, {"bootstrap", DType::f32, {}});
  if (horizon > 1) {
    put(Group::rewards, 0, 1, {"rewards", DType::f32, {horizon}});
    put(Group::valid, 0, 1, {"valid", DType::f32, {horizon}});
  }
  return out;
}

void Replay::gather_obs(const Rows& rows, int64_t begin, int64_t end, const OutField& f,
                        int64_t span, uint8_t* out) const {
  const Column& column = obs_[f.column];
  const size_t frame = column.row_bytes();
  const int stack = f.stack;
  const int64_t shift = f.group == Group::next_obs ? span : 0;
  const bool newest_first = options_.newest_first;
  if (frame == 0) return;
  // Newest first is the rule of common_utils/stacking.py, written again because each frame
  // is copied once, from the store into the batch; oldest first is the original's order.
  // The observation that stands for step t + shift; past the end the last one is repeated
  // (its bootstrap is 0 there unless the final observation of a truncated episode was kept).
  auto last = [](const RowRef& r) { return static_cast<int64_t>(r.len) - (r.has_final ? 0 : 1); };
  for (int64_t i = begin; i < end; ++i) {
    if (i + kLookAhead < end) {
      const RowRef& ahead = rows[static_cast<size_t>(i + kLookAhead)];
      if (ahead.t >= 0) {
        const int64_t t = std::min<int64_t>(ahead.t + shift, last(ahead));
        prefetch_row(column.row(ahead.obs0 + t), frame);
      }
    }
    const RowRef& r = rows[static_cast<size_t>(i)];
    uint8_t* dst = out + static_cast<size_t>(i) * f.row_bytes;
    if (r.t < 0) {
      std::memset(dst, 0, f.row_bytes);
      continue;
    }
    const int64_t stop = last(r);
    const int64_t now = newest_first ? std::min<int64_t>(r.t + shift, stop) : r.t + shift;
    for (int j = 0; j < stack; ++j, dst += frame) {
      int64_t t = newest_first ? now - j : now - (stack - 1) + j;
      if (t < 0) {
        if (newest_first) {
          std::memset(dst, 0, frame);
          continue;
        }
        t = 0;
      }
      std::memcpy(dst, column.row(r.obs0 + std::min(t, stop)), frame);
    }
  }
}

float Replay::reward(const RowRef& r, int64_t ahead) const {
  float x;
  std::memcpy(&x, reward_[0].row(r.step0 + r.t + ahead), sizeof x);
  return x;
}

// The n-step sum of rewards from a step on, up to the episode's end.
float Replay::returns(const RowRef& r, const Layout& layout) const {
  float sum = 0.0F;
  const int64_t k = std::min<int64_t>(layout.span, r.len - r.t);
  for (int64_t j = 0; j < k; ++j) sum += layout.weights[static_cast<size_t>(j)] * reward(r, j);
  return sum;
}

// The factor of the value after the n steps.
float Replay::bootstrap(const RowRef& r, const Layout& layout) {
  const int64_t n = layout.span;
  if (r.t + n < r.len) return layout.discounts[static_cast<size_t>(n)];
  return r.has_final ? layout.discounts[static_cast<size_t>(r.len - r.t)] : 0.0F;
}

// An action, reward, bootstrap, or those of a window. Behind the episode's end the last action is
// repeated: nothing depends on it, and a policy has seen its like.
void Replay::gather_step(const RowRef& r, const OutField& f, const Layout& layout,
                         uint8_t* dst) const {
  const int64_t inside = std::min<int64_t>(layout.horizon, r.len - r.t);
  if (f.group == Group::reward || f.group == Group::bootstrap) {
    const float x = f.group == Group::reward ? returns(r, layout) : bootstrap(r, layout);
    std::memcpy(dst, &x, sizeof x);
    return;
  }
  if (f.group == Group::action) {
    const Column& column = action_[f.column];
    const size_t bytes = column.row_bytes();
    const int64_t first = r.step0 + r.t;
    column.read(first, first + inside, dst);
    for (int64_t j = inside; bytes && j < layout.horizon; ++j) {
      std::memcpy(dst + static_cast<size_t>(j) * bytes, column.row(first + inside - 1), bytes);
    }
    return;
  }
  auto* values = reinterpret_cast<float*>(dst);
  if (f.group == Group::rewards) {
    reward_[0].read(r.step0 + r.t, r.step0 + r.t + inside, dst);
  } else {
    std::fill(values, values + inside, 1.0F);
  }
  std::fill(values + inside, values + layout.horizon, 0.0F);
}

Drawn Replay::draw_for_copy(int64_t batch, int horizon) {
  check_sampling(batch, horizon);
  const Layout plan = layout(batch, horizon);
  Drawn out;
  for (const RowRef& r : draw(rng, batch)) {
    out.step0.push_back(r.step0);
    out.obs0.push_back(r.obs0);
    out.t.push_back(r.t);
    out.last.push_back(r.len - (r.has_final ? 0 : 1));
    out.len.push_back(r.len);
    out.reward.push_back(returns(r, plan));
    out.bootstrap.push_back(bootstrap(r, plan));
    for (int64_t j = 0; horizon > 1 && j < horizon; ++j) {
      out.rewards.push_back(r.t + j < r.len ? reward(r, j) : 0.0F);
    }
  }
  return out;
}

std::array<int64_t, 2> Replay::live_span(Group g) const {
  if (empty_schema()) return {0, 0};
  return {column(g, 0).begin(), column(g, 0).end()};
}

void Replay::gather(const Rows& rows, int64_t begin, int64_t end, const Layout& layout,
                    int64_t row0, uint8_t* base) const {
  for (const OutField& f : layout.fields) {
    uint8_t* out = base + f.offset + static_cast<size_t>(row0) * f.row_bytes;
    if (f.group == Group::obs || f.group == Group::next_obs) {
      gather_obs(rows, begin, end, f, layout.span, out);
      continue;
    }
    const bool reads = f.group == Group::action || f.group == Group::reward;
    for (int64_t i = begin; i < end; ++i) {
      if (reads && i + kLookAhead < end) {
        const RowRef& ahead = rows[static_cast<size_t>(i + kLookAhead)];
        const Column& column = f.group == Group::action ? action_[f.column] : reward_[0];
        if (ahead.t >= 0 && column.row_bytes()) {
          prefetch_row(column.row(ahead.step0 + ahead.t),
                       column.row_bytes() * static_cast<size_t>(layout.span));
        }
      }
      const RowRef& r = rows[static_cast<size_t>(i)];
      uint8_t* dst = out + static_cast<size_t>(i) * f.row_bytes;
      if (r.t < 0) {
        std::memset(dst, 0, f.row_bytes);
      } else {
        gather_step(r, f, layout, dst);
      }
    }
  }
}

const Column& Replay::column(Group g, size_t i) const {
  const auto& columns = g == Group::obs ? obs_ : g == Group::action ? action_ : reward_;
  return columns.at(i);
}

int64_t Replay::live_rows(Group g) const {
  if (empty_schema()) return 0;
  return column(g, 0).end() - column(g, 0).begin();
}

void Replay::read(Group g, size_t i, int64_t begin, int64_t end, uint8_t* dst) const {
  if (begin < 0 || end < begin || end > live_rows(g))
    throw std::out_of_range("read: rows out of range");
  const Column& c = column(g, i);
  c.read(c.begin() + begin, c.begin() + end, dst);
}

Replay::Snapshot Replay::snapshot() const {
  Snapshot s;
  s.obs = obs_fields_;
  s.action = action_fields_;
  s.steps = live_rows(Group::reward);
  s.obs_rows = live_rows(Group::obs);
  s.num_add = num_add_;
  s.version = version;
  s.gamma = gamma_;
  s.rng = rng.state();
  for (size_t i = head_; i < episodes_.size(); ++i) {
    const EpisodeRow& e = episodes_[i];
    s.table.push_back({e.len, e.terminated, e.truncated, e.has_final});
  }
  return s;
}

void Replay::clear() {
  const std::unique_lock<std::shared_mutex> lock(data_mutex);
  wipe();
}

void Replay::wipe() {
  ++version;
  episodes_.clear();
  starts_.clear();
  head_ = 0;
  num_add_ = 0;
  obs_fields_.clear();
  action_fields_.clear();
  obs_.clear();
  action_.clear();
  reward_.clear();
}

void Replay::restore(const Views& obs, const Views& action, const View& reward,
                     const std::vector<std::array<int64_t, 4>>& table, float gamma, int64_t num_add,
                     const Rng::State& rng_state) {
  auto fail = [](const std::string& why) {
    throw std::invalid_argument("load_state_dict: " + why);
  };
  int64_t steps = 0, obs_rows = 0;
  for (const auto& e : table) {
    const bool fin = e[3] != 0;
    if (e[0] < 1 || e[0] > std::numeric_limits<int32_t>::max() || (!e[1] && !e[2]) ||
        (fin && (e[1] || !e[2] || !options_.bootstrap_truncated)) ||
        (options_.bootstrap_truncated && !e[1] && !fin)) {
      fail("the episode table does not fit this replay");
    }
    steps += e[0];
    obs_rows += e[0] + (fin ? 1 : 0);
  }
  if (static_cast<int64_t>(table.size()) > options_.capacity) {
    fail(std::to_string(table.size()) + " episodes do not fit the capacity " +
         std::to_string(options_.capacity));
  }
  if (num_add < static_cast<int64_t>(table.size()))
    fail("num_add is smaller than the number of episodes");
  auto strip = [&](const Views& views, int64_t rows) {
    Fields fields;
    for (const View& v : views) {
      Field f = v.field;
      if (f.shape.empty() || f.shape[0] != rows) {
        fail("'" + f.name + "' must have " + std::to_string(rows) + " rows, got " + f.text());
      }
      f.shape.erase(f.shape.begin());
      fields.push_back(f);
    }
    return fields;
  };
  const Fields of = strip(obs, obs_rows), af = strip(action, steps);
  if (!table.empty() && (of.empty() || af.empty())) fail("observations or actions are missing");
  if (!of.empty()) {
    if (reward.field.shape != Shape{steps} || reward.field.dtype != DType::f32) fail("bad rewards");
  }
  const std::unique_lock<std::shared_mutex> lock(data_mutex);
  wipe();
  if (!of.empty()) {
    try {
      adopt_schema(of, af, gamma);
      for (size_t i = 0; i < obs.size(); ++i) obs_[i].append(obs[i].data, obs_rows);
      for (size_t i = 0; i < action.size(); ++i) action_[i].append(action[i].data, steps);
      reward_[0].append(reward.data, steps);
    } catch (...) {  // out of memory or disk: an empty replay, not half a one
      wipe();
      throw;
    }
  }
  int64_t step0 = 0, obs0 = 0;
  for (const auto& t : table) {
    EpisodeRow e;
    e.step0 = step0;
    e.obs0 = obs0;
    e.len = static_cast<int32_t>(t[0]);
    e.terminated = t[1] != 0;
    e.truncated = t[2] != 0;
    e.has_final = t[3] != 0;
    episodes_.push_back(e);
    starts_.push_back(step0);
    step0 += e.len;
    obs0 += e.len + (e.has_final ? 1 : 0);
  }
  num_add_ = num_add;
  rng.set_state(rng_state);
}

}  // namespace rela
