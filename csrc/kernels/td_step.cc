#include "td_step.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace kernels {

TdStep::TdStep(std::vector<MlpLayer> layers, int64_t members, std::vector<AdamTensor> weights,
               std::vector<float*> follow)
    : net_{0, nullptr, std::vector<int64_t>(members), std::move(layers)},
      weights_(std::move(weights)),
      follow_(std::move(follow)) {
  std::iota(net_.members.begin(), net_.members.end(), 0);
  size_t next = 0;
  int64_t total = 0;
  // where a tensor's gradient begins, in `gradient_`; -1: the layer has no such tensor
  auto place = [&](bool there, int64_t n) -> int64_t {
    if (!there) return -1;
    if (next >= weights_.size() || weights_[next].n != n) {
      throw std::invalid_argument("kernels: weights do not match the layers");
    }
    ++next;
    return std::exchange(total, total + n);
  };
  std::vector<int64_t> places;
  for (const MlpLayer& l : net_.layers) {
    places.push_back(place(true, members * l.in * l.out));
    places.push_back(place(l.bias != nullptr, members * (l.bias_per_unit ? l.out : 1)));
    places.push_back(place(l.gamma != nullptr, l.out));
    places.push_back(place(l.gamma != nullptr, l.out));
  }
  if (next != weights_.size() || follow_.size() != next) {
    throw std::invalid_argument("kernels: weights do not match the layers");
  }
  gradient_.resize(total);
  auto at = [&](size_t i) { return places[i] < 0 ? nullptr : gradient_.data() + places[i]; };
  next = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] >= 0) weights_[next++].grad = at(i);
    if (i % 4 == 0) grads_.push_back({at(i), at(i + 1), at(i + 2), at(i + 3)});
  }
}

float TdStep::run(int64_t rows, const float* x, const float* target, const AdamRule& rule,
                  float tau, int threads) {
  const int64_t members = static_cast<int64_t>(net_.members.size());
  net_.rows = rows;
  net_.x = x;
  saved_.resize(mlp_saved_size(net_, true));
  q_.resize(members * rows);
  mlp(net_, q_.data(), saved_.data(), true, threads);
  const float share = 1.0f / static_cast<float>(rows);
  double loss = 0.0;
  for (int64_t i = 0; i < members * rows; ++i) {
    const float error = q_[i] - target[i % rows];
    loss += static_cast<double>(error) * error;
    q_[i] = share * (2.0f * error);  // from here on the loss's gradient
  }
  std::fill(gradient_.begin(), gradient_.end(), 0.0f);
  mlp_grad(net_, saved_.data(), true, q_.data(), nullptr, grads_, threads);
  adam_and_lerp(weights_, follow_, rule, tau, threads);
  return static_cast<float>(loss / static_cast<double>(rows));
}

}  // namespace kernels
