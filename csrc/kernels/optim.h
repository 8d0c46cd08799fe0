// Adam's step and the soft update of target networks, over all of a network's tensors in one call.
#pragma once

#include <cstdint>
#include <vector>

namespace kernels {

// A tensor of weights, its gradient and its moments, all of n elements; and how many steps it took.
struct AdamTensor {
  int64_t n;
  float* weight;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* step;
};

struct AdamRule {
  double lr, beta1, beta2, eps;
};

// A target and what it follows, both of n elements.
struct LerpTensor {
  int64_t n;
  float* to;
  const float* from;
};

// One step of Adam (Kingma and Ba 2015, algorithm 1), counted in each tensor's step.
void adam(const std::vector<AdamTensor>& tensors, const AdamRule& rule, int threads);

// to += weight (from - to)
void lerp(const std::vector<LerpTensor>& tensors, float weight, int threads);

// Both in one pass: the target of tensor i, at follow[i], follows the new weights.
void adam_and_lerp(const std::vector<AdamTensor>& tensors, const std::vector<float*>& follow,
                   const AdamRule& rule, float weight, int threads);

}  // namespace kernels
