// A whole multilayer perceptron, or several side by side (the members of an ensemble), forward
// and backward in one call each: layer after layer of one member, so that what a layer wrote is
// still in the cache when the next one reads it.
#pragma once

#include <cstdint>
#include <vector>

namespace kernels {

// linear, then (if hidden) relu(dropout(layer_norm(. + bias))); else + bias.
struct MlpLayer {
  int64_t in, out;
  const float* w;  // [members, in, out], or [out, in] each if transposed
  bool transposed;
  const float* bias;  // null, [members] or [members, out]
  bool bias_per_unit;
  const float* gamma;  // [out], shared by the members; null: no layer norm
  const float* beta;
  float eps;
  uint32_t keep;  // as in NormRelu
  float scale;
  uint64_t seed;
  bool hidden;
};

struct Mlp {
  int64_t rows;
  const float* x;                // [rows, in], the same for all members
  std::vector<int64_t> members;  // which of the stored ones, in this order
  std::vector<MlpLayer> layers;
  int64_t first_row = 0;  // these are rows [first_row, first_row + rows) of a batch ...
  int64_t others = 0;     // ... that has so many other rows: for the dropout generator
};

// Shapes as the parameters'; null where not wanted. Members that take no part are left alone.
struct MlpLayerGrad {
  float* dw;
  float* dbias;
  float* dgamma;
  float* dbeta;
};

// Floats that the backward pass needs of the forward pass. ``hidden``: with the layers' inputs,
// which the gradients of weights need.
int64_t mlp_saved_size(const Mlp& a, bool hidden);

// out [members, rows, last layer's out]; saved may be null.
void mlp(const Mlp& a, float* out, float* saved, bool hidden, int threads);

// dout as out; dx [rows, in] or null. grads: one per layer, or none at all.
void mlp_grad(const Mlp& a, const float* saved, bool hidden, const float* dout, float* dx,
              const std::vector<MlpLayerGrad>& grads, int threads);

// The same where row r's gradient reaches member pick[r] alone (position in ``members``), and
// only dx is wanted. dout [rows, last layer's out]. No dropout.
void mlp_grad_picked(const Mlp& a, const float* saved, bool hidden, const int64_t* pick,
                     const float* dout, float* dx, int threads);

}  // namespace kernels
