#include "optim.h"

#include <algorithm>
#include <cmath>

#include "blocks.h"
#include "kernels.h"

namespace kernels {
namespace {

// Elements that stay in the first cache between two passes.
constexpr int64_t kPass = 1024;

// fn(tensor, begin, end) over all elements of several tensors, each thread on its own share.
template <typename Fn>
void over_elements(const std::vector<int64_t>& sizes, int threads, const Fn& fn) {
  int64_t total = 0;
  for (int64_t n : sizes) total += n;
  threads = fit_threads(threads, total);
  for_blocks(total, threads, threads, [&](int64_t, int64_t begin, int64_t end) {
    int64_t first = 0;  // of the tensor, among all elements
    for (size_t i = 0; i < sizes.size(); first += sizes[i++]) {
      const int64_t from = std::max(begin - first, int64_t{0});
      const int64_t to = std::min(end - first, sizes[i]);
      if (from < to) fn(i, from, to);
    }
  });
}

template <typename T>
std::vector<int64_t> sizes_of(const std::vector<T>& tensors) {
  std::vector<int64_t> sizes;
  for (const auto& t : tensors) sizes.push_back(t.n);
  return sizes;
}

// Counts the step, and gives its factors. In double precision and rounded once, as torch does.
std::vector<Adam> next_steps(const std::vector<AdamTensor>& tensors, const AdamRule& rule) {
  std::vector<Adam> steps;
  for (const auto& tensor : tensors) {
    const double t = *tensor.step += 1.0f;
    steps.push_back({static_cast<float>(rule.lr / (1.0 - std::pow(rule.beta1, t))),
                     static_cast<float>(rule.beta1), static_cast<float>(rule.beta2),
                     static_cast<float>(std::sqrt(1.0 - std::pow(rule.beta2, t))),
                     static_cast<float>(rule.eps)});
  }
  return steps;
}

void step_on(const Adam& step, const AdamTensor& t, int64_t begin, int64_t end) {
  active->adam(step, t.weight + begin, t.grad + begin, t.exp_avg + begin, t.exp_avg_sq + begin,
               end - begin);
}

}  // namespace

void adam(const std::vector<AdamTensor>& tensors, const AdamRule& rule, int threads) {
  const auto steps = next_steps(tensors, rule);
  over_elements(sizes_of(tensors), threads, [&](size_t i, int64_t begin, int64_t end) {
    step_on(steps[i], tensors[i], begin, end);
  });
}

void lerp(const std::vector<LerpTensor>& tensors, float weight, int threads) {
  over_elements(sizes_of(tensors), threads, [&](size_t i, int64_t begin, int64_t end) {
    const LerpTensor& t = tensors[i];
    active->lerp(t.to + begin, t.from + begin, weight, end - begin);
  });
}

void adam_and_lerp(const std::vector<AdamTensor>& tensors, const std::vector<float*>& follow,
                   const AdamRule& rule, float weight, int threads) {
  const auto steps = next_steps(tensors, rule);
  over_elements(sizes_of(tensors), threads, [&](size_t i, int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kPass) {
      const int64_t stop = std::min(at + kPass, end);
      step_on(steps[i], tensors[i], at, stop);
      active->lerp(follow[i] + at, tensors[i].weight + at, weight, stop - at);
    }
  });
}

}  // namespace kernels
