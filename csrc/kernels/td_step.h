// A whole step of a critic ensemble: values, squared error, gradients, Adam, soft update of the
// target ensemble. One call with memory of its own, for networks so small that the work between
// the kernels takes as long as they do.
#pragma once

#include <cstdint>
#include <vector>

#include "mlp.h"
#include "optim.h"

namespace kernels {

class TdStep {
 public:
  // weights: of every layer its w, bias, gamma, beta, those that it has; their gradients are kept
  // here. follow: the target's, in the same order.
  TdStep(std::vector<MlpLayer> layers, int64_t members, std::vector<AdamTensor> weights,
         std::vector<float*> follow);
  TdStep(const TdStep&) = delete;  // weights_ and grads_ have addresses in gradient_
  TdStep& operator=(const TdStep&) = delete;

  // x [rows, in], target [rows] -> the loss before the step: the squared error, summed over the
  // members, averaged over the rows.
  float run(int64_t rows, const float* x, const float* target, const AdamRule& rule, float tau,
            int threads);

 private:
  Mlp net_;
  std::vector<AdamTensor> weights_;
  std::vector<float*> follow_;
  std::vector<MlpLayerGrad> grads_;
  std::vector<float> gradient_, saved_, q_;
};

}  // namespace kernels
