#include "episode.h"

#include <algorithm>
#include <cmath>

namespace rela {
namespace {

std::string names(const Fields& fields) {
  std::string out = "{";
  for (size_t i = 0; i < fields.size(); ++i) out += (i ? ", " : "") + fields[i].name;
  return out + "}";
}

void append_row(std::vector<Bytes>& columns, const Views& views) {
  for (size_t i = 0; i < views.size(); ++i) {
    const size_t n = views[i].field.bytes();
    if (n) columns[i].insert(columns[i].end(), views[i].data, views[i].data + n);
  }
}

float checked_reward(double r, const std::string& where) {
  const auto f = static_cast<float>(r);
  if (!std::isfinite(f)) {
    throw std::invalid_argument(where + ": reward must be a finite float32, got " +
                                std::to_string(r));
  }
  return f;
}

}  // namespace

void check_fields(const Fields& want, const Fields& got, const std::string& what) {
  if (want == got) return;
  std::string why;
  if (want.size() != got.size()) why = "has keys " + names(got) + ", expected " + names(want);
  for (size_t i = 0; why.empty() && i < want.size(); ++i) {
    if (want[i].name != got[i].name) {
      why = "has keys " + names(got) + ", expected " + names(want);
    } else if (!(want[i] == got[i])) {
      why = "key '" + want[i].name + "' is " + got[i].text() + ", expected " + want[i].text() +
            " as first given";
    }
  }
  throw std::invalid_argument(what + " " + why);
}

void check_nstep_gamma(int64_t nstep, double gamma) {
  if (nstep < 1 || nstep > 100000) {
    throw std::invalid_argument("nstep must be in [1, 100000], got " + std::to_string(nstep));
  }
  if (!(gamma >= 0.0 && gamma <= 1.0)) {
    throw std::invalid_argument("gamma must be in [0, 1], got " + std::to_string(gamma));
  }
}

std::vector<float> return_weights(float gamma, int n) {
  std::vector<float> out{1.0F};
  for (int j = 0; j < n; ++j) out.push_back(out.back() * gamma);
  return out;
}

std::vector<float> bootstrap_weights(float gamma, int n) {
  std::vector<float> out;
  for (int j = 0; j <= n; ++j) {
    out.push_back(static_cast<float>(std::pow(static_cast<double>(gamma), j)));
  }
  return out;
}

float nstep_return(const float* reward, int64_t t, int64_t len, const std::vector<float>& weights) {
  const auto n = static_cast<int64_t>(weights.size()) - 1;
  const int64_t k = std::min(n, len - t);
  float sum = 0.0F;
  for (int64_t j = 0; j < k; ++j) sum += weights[static_cast<size_t>(j)] * reward[t + j];
  return sum;
}

Episode::Episode(int64_t nstep, int64_t max_len, double gamma)
    : nstep_(static_cast<int>(nstep)), max_len_(max_len), gamma_(static_cast<float>(gamma)) {
  check_nstep_gamma(nstep, gamma);
  if (max_len < 1) {
    throw std::invalid_argument("max_len must be at least 1, got " + std::to_string(max_len));
  }
  data_ = std::make_shared<EpisodeData>();
  reset();
}

EpisodeData& Episode::mutable_data() { return *data_; }

void Episode::reset() {
  // Keep the schema (later episodes must match the first) and, when nobody else holds them, the
  // buffers.
  if (shared_ && data_.use_count() > 1) {
    auto fresh = std::make_shared<EpisodeData>();
    fresh->obs_fields = data_->obs_fields;
    fresh->action_fields = data_->action_fields;
    fresh->obs.resize(fresh->obs_fields.size());
    fresh->action.resize(fresh->action_fields.size());
    data_ = std::move(fresh);
  } else {
    for (Bytes& b : data_->obs) b.clear();
    for (Bytes& b : data_->action) b.clear();
    data_->reward.clear();
  }
  shared_ = false;
  data_->len = 0;
  data_->terminated = data_->truncated = data_->has_final = false;
  data_->nstep = nstep_;
  data_->gamma = gamma_;
  phase_ = Phase::obs;
}

void Episode::expect(Phase want, const char* call) const {
  static const char* const next[] = {"push_obs", "push_action", "push_reward", "push_terminal",
                                     "pop_transition, then reset or init"};
  if (phase_ == want) return;
  throw std::runtime_error(std::string("Episode.") + call + " out of order at step " +
                           std::to_string(data_->len) + ": expected " +
                           next[static_cast<int>(phase_)] +
                           (phase_ == Phase::over ? " (the episode is over)" : ""));
}

void Episode::push_obs(const Views& obs) {
  expect(Phase::obs, "push_obs");
  if (data_->len >= max_len_) {
    throw std::runtime_error(
        "Episode.push_obs: the episode already has max_len = " + std::to_string(max_len_) +
        " steps and was not ended by push_terminal");
  }
  EpisodeData& d = mutable_data();
  if (d.obs_fields.empty()) {
    if (obs.empty()) throw std::invalid_argument("Episode.push_obs: the observation has no keys");
    d.obs_fields = fields_of(obs);
    d.obs.resize(obs.size());
  }
  check_fields(d.obs_fields, fields_of(obs), "Episode.push_obs: observation");
  append_row(d.obs, obs);
  phase_ = Phase::action;
}

void Episode::push_action(const Views& action) {
  expect(Phase::action, "push_action");
  EpisodeData& d = mutable_data();
  if (d.action_fields.empty()) {
    if (action.empty()) throw std::invalid_argument("Episode.push_action: the action has no keys");
    d.action_fields = fields_of(action);
    d.action.resize(action.size());
  }
  check_fields(d.action_fields, fields_of(action), "Episode.push_action: action");
  append_row(d.action, action);
  phase_ = Phase::reward;
}

void Episode::push_reward(double reward) {
  expect(Phase::reward, "push_reward");
  mutable_data().reward.push_back(
      checked_reward(reward, "Episode.push_reward at step " + std::to_string(data_->len)));
  phase_ = Phase::terminal;
}

void Episode::push_terminal(bool terminated, bool truncated) {
  expect(Phase::terminal, "push_terminal");
  EpisodeData& d = mutable_data();
  d.len += 1;
  d.terminated = terminated;
  d.truncated = truncated;
  phase_ = terminated || truncated ? Phase::over : Phase::obs;
}

void Episode::push_final_obs(const Views& obs) {
  if (phase_ != Phase::over || !data_->truncated || data_->has_final || shared_) {
    throw std::runtime_error(
        "Episode.push_final_obs: only once, after push_terminal(..., truncated=True) and before "
        "pop_transition");
  }
  EpisodeData& d = mutable_data();
  check_fields(d.obs_fields, fields_of(obs), "Episode.push_final_obs: observation");
  append_row(d.obs, obs);
  d.has_final = true;
}

EpisodePtr Episode::pop_transition() {
  if (phase_ != Phase::over) {
    throw std::runtime_error("Episode.pop_transition: the episode of " +
                             std::to_string(data_->len) +
                             " steps is not over (the last push_terminal must be 1, or truncated)");
  }
  shared_ = true;
  return data_;
}

void Episode::reset_rewards(const std::vector<float>& rewards) {
  if (shared_) {
    throw std::runtime_error(
        "Episode.reset_rewards: pop_transition already handed the episode out");
  }
  if (rewards.size() != data_->reward.size()) {
    throw std::invalid_argument("Episode.reset_rewards: got " + std::to_string(rewards.size()) +
                                " rewards for " + std::to_string(data_->reward.size()) + " steps");
  }
  for (size_t i = 0; i < rewards.size(); ++i) {
    checked_reward(rewards[i], "Episode.reset_rewards at step " + std::to_string(i));
  }
  mutable_data().reward = rewards;
}

void Episode::restore(EpisodeData data, Phase phase) {
  const int64_t rows = data.len + (phase == Phase::action || phase == Phase::reward ||
                                   phase == Phase::terminal || data.has_final);
  const int64_t actions = data.len + (phase == Phase::reward || phase == Phase::terminal);
  const int64_t rewards = data.len + (phase == Phase::terminal);
  bool ok = data.len >= 0 && data.len <= max_len_ && phase >= Phase::obs && phase <= Phase::over &&
            static_cast<int64_t>(data.reward.size()) == rewards &&
            (phase == Phase::over) == (data.terminated || data.truncated) &&
            (!data.has_final || phase == Phase::over);
  for (size_t i = 0; ok && i < data.obs.size(); ++i) {
    ok = data.obs[i].size() == static_cast<size_t>(rows) * data.obs_fields[i].bytes();
  }
  for (size_t i = 0; ok && i < data.action.size(); ++i) {
    ok = data.action[i].size() == static_cast<size_t>(actions) * data.action_fields[i].bytes();
  }
  if (!ok) throw std::invalid_argument("Episode.load_state_dict: lengths do not fit together");
  data.nstep = nstep_;
  data.gamma = gamma_;
  data_ = std::make_shared<EpisodeData>(std::move(data));
  shared_ = false;
  phase_ = phase;
}

EpisodePtr make_episode(const Views& obs, const Views& action, const View& reward, bool terminated,
                        bool truncated, bool has_final, int64_t nstep, double gamma) {
  check_nstep_gamma(nstep, gamma);
  if (obs.empty() || action.empty()) {
    throw std::invalid_argument("an episode needs at least one observation key and one action key");
  }
  if (!terminated && !truncated) {
    throw std::invalid_argument("a whole episode must be terminated or truncated");
  }
  if (has_final && !truncated) {
    throw std::invalid_argument("a final observation belongs to a truncated episode only");
  }
  if (reward.field.shape.size() != 1 || reward.field.dtype != DType::f32) {
    throw std::invalid_argument("rewards must be float32 [T], got " + reward.field.text());
  }
  const int64_t len = reward.field.shape[0];
  if (len < 1) throw std::invalid_argument("an episode needs at least one step");

  auto d = std::make_shared<EpisodeData>();
  auto take = [](const Views& views, int64_t rows, const char* what, Fields& fields,
                 std::vector<Bytes>& out) {
    for (const View& v : views) {
      Field f = v.field;
      if (f.shape.empty() || f.shape[0] != rows) {
        throw std::invalid_argument(std::string(what) + " '" + f.name + "' must have " +
                                    std::to_string(rows) + " rows, got shape " +
                                    shape_text(f.shape));
      }
      const size_t bytes = f.bytes();
      f.shape.erase(f.shape.begin());
      fields.push_back(f);
      out.emplace_back(v.data, v.data + bytes);
    }
  };
  take(obs, len + (has_final ? 1 : 0), "observation", d->obs_fields, d->obs);
  take(action, len, "action", d->action_fields, d->action);
  const auto* r = reinterpret_cast<const float*>(reward.data);
  d->reward.assign(r, r + len);
  for (int64_t t = 0; t < len; ++t) {
    checked_reward(d->reward[static_cast<size_t>(t)], "rewards at step " + std::to_string(t));
  }
  d->len = len;
  d->terminated = terminated;
  d->truncated = truncated;
  d->has_final = has_final;
  d->nstep = static_cast<int>(nstep);
  d->gamma = static_cast<float>(gamma);
  return d;
}

}  // namespace rela
