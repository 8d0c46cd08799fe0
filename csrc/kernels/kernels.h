// Fused kernels of the update: elementwise passes, matrix products, Adam, the soft update.
//
// Plain loops on contiguous float32 arrays, compiled once per instruction set (impl.cc)
// and chosen when the module is loaded (bind.cc). Every reduction runs over fixed blocks in a
// fixed order, so a result never depends on the number of threads.
#pragma once

#include <cstdint>

namespace kernels {

// relu(dropout(layer_norm(x + bias))), each part optional. x [groups * rows, width].
struct NormRelu {
  int64_t groups, rows, width;
  const float* x;
  const float* bias;   // null, [groups] or [groups, width]
  bool bias_per_unit;  // says which
  const float* gamma;  // [width]; null: no layer norm
  const float* beta;   // [width]
  float eps;
  uint32_t keep;  // kept when the random 32 bits are below; 0: no dropout
  float scale;    // 1 / (1 - p)
  uint64_t seed;
  float* mean;  // [groups * rows], written by forward, read by backward
  float* rstd;
  // The dropout generator calls row r of group g: first_row + r + g * (rows + others). Masks of a
  // part of a batch are those of the whole: ``others`` are its rows that are not here.
  int64_t first_row = 0;
  int64_t others = 0;
};

// norm(x) (+ residual), rectified or not; each channel of each picture is normalised by itself.
struct ChannelNorm {
  int64_t pictures, channels, size;  // size: pixels
  const float* x;                    // [pictures, channels, size]
  bool channels_last;                // or [pictures, size, channels]; so are y and the residual
  const float* gamma;                // [channels]
  const float* beta;                 // [channels]
  const float* residual;             // null, or as x
  float eps;
  bool relu;
};

// c [m, n] = (c +) op(a) op(b) (+ bias): a is [m, k], or [k, m] with ta; b is [k, n], or [n, k]
// with tb. A bias is not for sums that add to c.
struct Gemm {
  int64_t m, n, k;
  const float* a;
  int64_t lda;
  bool ta;
  const float* b;
  int64_t ldb;
  bool tb;
  float* c;
  int64_t ldc;
  bool add = false;
  const float* bias = nullptr;  // [n]
};
constexpr int64_t kGemmScratch = 256 * (256 + 96) + 1024 * 320;  // floats

// A linear layer of a few outputs: y [rows, out] = h [rows, in] w [out, in]^T + bias.
struct Narrow {
  int64_t rows, in, out;
  const float* h;
  const float* w;
  const float* bias;  // null, or [out]
};

// sum over rows r of relu(layer_norm(shared[b, r] + action[b, n])) * weight[r] -> out [b, n].
struct Spatial {
  int64_t batch, rows, num, width;
  const float* shared;  // [batch, rows, width]
  const float* action;  // [batch, num, width]
  const float* gamma;   // [width]
  const float* beta;    // [width]
  const float* weight;  // [rows, width]
  float eps;
  float* mean;  // [batch, rows, num]
  float* rstd;
};

// Gradients of a fused operation; null where not wanted.
struct NormReluGrad {
  const float* dy;
  float* dx;  // always wanted
  float* dbias;
  float* dgamma;
  float* dbeta;
};
struct SpatialGrad {
  const float* dz;  // [batch, num, width]
  float* dshared;
  float* daction;  // always wanted
  float* dgamma;
  float* dbeta;
  float* dweight;
};

// One step of Adam (Kingma and Ba 2015, algorithm 1) on a tensor of weights p with gradient g.
struct Adam {
  float step_size;  // alpha / (1 - beta1^t)
  float beta1, beta2;
  float root;  // sqrt(1 - beta2^t)
  float eps;
};

// Work on one block [begin, end) of groups * rows, of channels, or of the batch. The sums of a
// block over its rows go to `partial`, which the caller adds up in order.
struct Table {
  const char* isa;
  void (*norm_relu)(const NormRelu&, float* y, int64_t begin, int64_t end);
  void (*norm_relu_grad)(const NormRelu&, const NormReluGrad&, int64_t begin, int64_t end);
  void (*channel_norm)(const ChannelNorm&, float* y, int64_t begin, int64_t end);
  void (*spatial)(const Spatial&, float* out, int64_t begin, int64_t end);
  void (*spatial_grad)(const Spatial&, const SpatialGrad&, int64_t begin, int64_t end);
  void (*add)(float* into, const float* from, int64_t n);
  void (*adam)(const Adam&, float* p, const float* g, float* m, float* v, int64_t n);
  void (*lerp)(float* to, const float* from, float weight, int64_t n);  // to += weight (from - to)
  void (*gemm)(const Gemm&, float* scratch);  // scratch: kGemmScratch floats
  void (*narrow)(const Narrow&, float* y);
  void (*narrow_dh)(const Narrow&, const float* dy, float* dh);
  // columns [begin, end) of dw [out, in]
  void (*narrow_dw)(const Narrow&, const float* dy, float* dw, int64_t begin, int64_t end);
};

extern const Table* active;  // the one in use

namespace base {
extern const Table table;
}
#if defined(__x86_64__)
namespace v3 {
extern const Table table;
}
namespace v4 {
extern const Table table;
}
#endif

}  // namespace kernels
