// One episode: built step by step by Episode, handed on as an immutable EpisodeData.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "types.h"

namespace rela {

using Bytes = std::vector<uint8_t>;

// Frames back to back, one buffer per field (fields sorted by name).
struct EpisodeData {
  Fields obs_fields, action_fields;
  std::vector<Bytes> obs, action;
  std::vector<float> reward;  // raw, one per step
  int64_t len = 0;            // steps with an action
  bool terminated = false;
  bool truncated = false;
  bool has_final = false;  // obs holds one row more: what was seen after the last action
  int nstep = 1;
  float gamma = 1.0F;

  int64_t obs_rows() const { return len + (has_final ? 1 : 0); }
};

using EpisodePtr = std::shared_ptr<const EpisodeData>;

// gamma^j for j = 0..n. Two roundings, because the original program has both and its recorded
// numbers are matched bit for bit: returns multiply float32 by float32, bootstraps round the exact
// power once.
std::vector<float> return_weights(float gamma, int n);
std::vector<float> bootstrap_weights(float gamma, int n);

// sum_{j<n, t+j<len} gamma^j r[t+j] in float32.
float nstep_return(const float* reward, int64_t t, int64_t len, const std::vector<float>& weights);

void check_nstep_gamma(int64_t nstep, double gamma);

// Builder with the order of the original: push_obs, push_action, push_reward, push_terminal, again.
class Episode {
 public:
  Episode(int64_t nstep, int64_t max_len, double gamma);

  void reset();
  void push_obs(const Views& obs);
  void push_action(const Views& action);
  void push_reward(double reward);
  void push_terminal(bool terminated, bool truncated);
  void push_final_obs(const Views& obs);
  EpisodePtr pop_transition();

  int64_t len() const { return data_->len; }
  const std::vector<float>& rewards() const { return data_->reward; }
  void reset_rewards(const std::vector<float>& rewards);

  // For exact resume of an unfinished episode.
  enum class Phase : int { obs = 0, action = 1, reward = 2, terminal = 3, over = 4 };
  Phase phase() const { return phase_; }
  const EpisodeData& data() const { return *data_; }
  void restore(EpisodeData data, Phase phase);

  int nstep() const { return nstep_; }
  int64_t max_len() const { return max_len_; }
  float gamma() const { return gamma_; }

 private:
  void expect(Phase want, const char* call) const;
  EpisodeData& mutable_data();

  int nstep_;
  int64_t max_len_;
  float gamma_;
  Phase phase_ = Phase::obs;
  bool schema_known_ = false;
  bool shared_ = false;  // data_ was handed out: never written again
  std::shared_ptr<EpisodeData> data_;
};

// A whole episode at once; obs has len + 1 rows when has_final.
EpisodePtr make_episode(const Views& obs, const Views& action, const View& reward, bool terminated,
                        bool truncated, bool has_final, int64_t nstep, double gamma);

}  // namespace rela
