// The loops of kernels.h for one instruction set: compiled several times with another KERNELS_ISA
// and other machine flags. Nothing from the standard library with external linkage may be used
// here, or the linker could pick a copy that the running CPU cannot execute.
#include "kernels.h"

#ifndef KERNELS_ISA
#define KERNELS_ISA base
#endif
#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(...) _Pragma(STRINGIFY(omp simd reduction(+ : __VA_ARGS__)))

namespace kernels {
namespace KERNELS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVL = 16, kMR = 14, kNV = 2;
#elif defined(__AVX__)
constexpr int kVL = 8, kMR = 6, kNV = 2;
#elif defined(__aarch64__)
constexpr int kVL = 4, kMR = 8, kNV = 3;
#else
constexpr int kVL = 4, kMR = 6, kNV = 2;
#endif
typedef float Vec __attribute__((vector_size(kVL * 4), aligned(4), may_alias));

// relu that keeps NaN, as torch does
inline float relu(float v) { return v < 0.0f ? 0.0f : v; }

// 32 random bits of element (row, col): two rounds of multiply and shift on a counter
inline uint32_t mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x7feb352dU;
  h ^= h >> 15;
  h *= 0x846ca68bU;
  return h ^ (h >> 16);
}

inline uint32_t row_key(uint64_t seed, int64_t row) {
  return mix(static_cast<uint32_t>(seed) +
             mix(static_cast<uint32_t>(row) ^ static_cast<uint32_t>(seed >> 32)));
}

// what the dropout generator calls a row
inline int64_t named(const NormRelu& a, int64_t row) {
  return a.first_row + row + (a.others == 0 ? 0 : row / a.rows * a.others);
}

// Sum of (x[i] - shift)^kPower, in several sums that don't wait for each other.
template <int kPower>
inline float sum_of(const float* x, int64_t n, float shift) {
  Vec sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kVL <= n; i += 4 * kVL) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec v = *reinterpret_cast<const Vec*>(x + i + j * kVL) - shift;
      sum[j] += kPower == 1 ? v : v * v;
    }
  }
  const Vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float part[kVL], total = 0.0f;
  __builtin_memcpy(part, &all, sizeof(part));
  SIMD_SUM(total) for (int j = 0; j < kVL; ++j) total += part[j];
  for (; i < n; ++i) total += kPower == 1 ? x[i] - shift : (x[i] - shift) * (x[i] - shift);
  return total;
}

inline void moments(const float* x, int64_t n, float eps, float& mean, float& rstd) {
  const float m = sum_of<1>(x, n, 0.0f) / static_cast<float>(n);
  const float square = sum_of<2>(x, n, m);
  mean = m;
  rstd = 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + eps);
}

// out = x + the row's bias; returns where the sum is (x itself when there is no bias)
inline const float* biased(const NormRelu& a, const float* x, int64_t row, float* out) {
  if (a.bias == nullptr) return x;
  const int64_t n = a.width, group = row / a.rows;
  if (a.bias_per_unit) {
    const float* b = a.bias + group * n;
    SIMD for (int64_t i = 0; i < n; ++i) out[i] = x[i] + b[i];
  } else {
    const float b = a.bias[group];
    SIMD for (int64_t i = 0; i < n; ++i) out[i] = x[i] + b;
  }
  return out;
}

void norm_relu(const NormRelu& a, float* y, int64_t begin, int64_t end) {
  const int64_t n = a.width;
  for (int64_t row = begin; row < end; ++row) {
    float* out = y + row * n;
    // layer norm takes a scalar bias away again
    const bool shifted = a.gamma != nullptr && a.bias != nullptr && !a.bias_per_unit;
    const float* x = a.x + row * n;
    if (!shifted) x = biased(a, x, row, out);
    if (a.gamma != nullptr) {
      float mean, rstd;
      moments(x, n, a.eps, mean, rstd);
      a.mean[row] = shifted ? mean + a.bias[row / a.rows] : mean;
      a.rstd[row] = rstd;
      const float *g = a.gamma, *b = a.beta;
      SIMD for (int64_t i = 0; i < n; ++i) out[i] = relu((x[i] - mean) * rstd * g[i] + b[i]);
    } else {
      SIMD for (int64_t i = 0; i < n; ++i) out[i] = relu(x[i]);
    }
    if (a.keep != 0) {
      const uint32_t key = row_key(a.seed, named(a, row)), keep = a.keep;
      const float scale = a.scale;
      SIMD for (int64_t i = 0; i < n; ++i) out[i] *=
          mix(key + static_cast<uint32_t>(i)) < keep ? scale : 0.0f;
    }
  }
}

// Each block is within one group. dbias, dgamma and dbeta point to the block's own sums.
template <bool kParams, bool kUnit>
void norm_relu_grad_(const NormRelu& a, const NormReluGrad& g, int64_t begin, int64_t end) {
  const int64_t n = a.width;
  const float inv = 1.0f / static_cast<float>(n);
  float bias_sum = 0.0f;
  for (int64_t row = begin; row < end; ++row) {
    const float* dy = g.dy + row * n;
    float* dx = g.dx + row * n;
    const float* x = a.x + row * n;
    const float* bu = nullptr;
    float shift = 0.0f;
    if (a.bias != nullptr) {
      const int64_t group = row / a.rows;
      if (kUnit)
        bu = a.bias + group * n;
      else
        shift = a.bias[group];
    }
    if (a.keep != 0) {
      const uint32_t key = row_key(a.seed, named(a, row)), keep = a.keep;
      const float scale = a.scale;
      SIMD for (int64_t i = 0; i < n; ++i) {
        const float d = dy[i] * scale;
        dx[i] = mix(key + static_cast<uint32_t>(i)) < keep ? d : 0.0f;
      }
      dy = dx;
    }
    if (a.gamma == nullptr) {
      SIMD for (int64_t i = 0; i < n; ++i) {
        const float xi = x[i] + (kUnit ? bu[i] : shift), d = dy[i];
        dx[i] = xi <= 0.0f ? 0.0f : d;
      }
    } else {
      const float mean = a.mean[row] - shift, rstd = a.rstd[row];
      const float *ga = a.gamma, *be = a.beta;
      float *dg = g.dgamma, *db = g.dbeta;
      float s0 = 0.0f, s1 = 0.0f;
      SIMD_SUM(s0, s1) for (int64_t i = 0; i < n; ++i) {
        const float xi = kUnit ? x[i] + bu[i] : x[i];
        const float hat = (xi - mean) * rstd;
        const float y = hat * ga[i] + be[i], dyi = dy[i];
        const float d = y <= 0.0f ? 0.0f : dyi;
        dx[i] = d;
        if (kParams) {
          dg[i] += d * hat;
          db[i] += d;
        }
        s0 += d * ga[i];
        s1 += d * ga[i] * hat;
      }
      const float m0 = s0 * inv, m1 = s1 * inv;
      SIMD for (int64_t i = 0; i < n; ++i) {
        const float xi = kUnit ? x[i] + bu[i] : x[i];
        dx[i] = rstd * (dx[i] * ga[i] - m0 - (xi - mean) * rstd * m1);
      }
    }
    if (g.dbias != nullptr) {
      if (kUnit) {
        float* db = g.dbias;
        SIMD for (int64_t i = 0; i < n; ++i) db[i] += dx[i];
      } else {
        float sum = 0.0f;
        SIMD_SUM(sum) for (int64_t i = 0; i < n; ++i) sum += dx[i];
        bias_sum += sum;
      }
    }
  }
  if (g.dbias != nullptr && !kUnit) g.dbias[0] += bias_sum;
}

void norm_relu_grad(const NormRelu& a, const NormReluGrad& g, int64_t begin, int64_t end) {
  const bool params = g.dgamma != nullptr, unit = a.bias != nullptr && a.bias_per_unit;
  if (params && unit)
    norm_relu_grad_<true, true>(a, g, begin, end);
  else if (params)
    norm_relu_grad_<true, false>(a, g, begin, end);
  else if (unit)
    norm_relu_grad_<false, true>(a, g, begin, end);
  else
    norm_relu_grad_<false, false>(a, g, begin, end);
}

// 64 channels or less of a picture whose pixels have all their channels together.
void norm_last(const ChannelNorm& a, const float* x, const float* more, float* out,
               const float* gamma, const float* beta, int64_t width) {
  const int64_t n = a.size, step = a.channels;
  float mean[64] = {}, scale[64] = {}, shift[64];
  for (int64_t i = 0; i < n; ++i)
    SIMD for (int64_t c = 0; c < width; ++c) mean[c] += x[i * step + c];
  SIMD for (int64_t c = 0; c < width; ++c) mean[c] /= static_cast<float>(n);
  for (int64_t i = 0; i < n; ++i) SIMD for (int64_t c = 0; c < width; ++c) {
      const float d = x[i * step + c] - mean[c];
      scale[c] += d * d;
    }
  SIMD for (int64_t c = 0; c < width; ++c) {
    scale[c] = gamma[c] / __builtin_sqrtf(scale[c] / static_cast<float>(n) + a.eps);
    shift[c] = beta[c] - scale[c] * mean[c];
  }
  const float least = a.relu ? 0.0f : -__builtin_inff();
  for (int64_t i = 0; i < n; ++i) {
    const float* xi = x + i * step;
    float* to = out + i * step;
    if (more == nullptr) {
      SIMD for (int64_t c = 0; c < width; ++c) {
        const float v = xi[c] * scale[c] + shift[c];
        to[c] = v < least ? least : v;
      }
    } else {
      const float* extra = more + i * step;
      SIMD for (int64_t c = 0; c < width; ++c) {
        const float v = xi[c] * scale[c] + shift[c] + extra[c];
        to[c] = v < least ? least : v;
      }
    }
  }
}

void channel_norm_last(const ChannelNorm& a, float* y, int64_t begin, int64_t end) {
  const int64_t groups = (a.channels + 63) / 64;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % groups * 64, left = a.channels - first;
    const int64_t from = i / groups * a.size * a.channels + first;
    norm_last(a, a.x + from, a.residual != nullptr ? a.residual + from : nullptr, y + from,
              a.gamma + first, a.beta + first, left < 64 ? left : 64);
  }
}

// Blocks of channels of pictures, or of groups of 64 channels if they come last.
void channel_norm(const ChannelNorm& a, float* y, int64_t begin, int64_t end) {
  if (a.channels_last) return channel_norm_last(a, y, begin, end);
  const int64_t n = a.size;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = a.x + row * n;
    float* out = y + row * n;
    float mean, rstd;
    moments(x, n, a.eps, mean, rstd);
    const float g = rstd * a.gamma[row % a.channels], b = a.beta[row % a.channels] - g * mean;
    const float* more = a.residual != nullptr ? a.residual + row * n : nullptr;
    const float least = a.relu ? 0.0f : -__builtin_inff();
    // a comparison that keeps NaN
    if (more == nullptr) {
      SIMD for (int64_t i = 0; i < n; ++i) {
        const float v = x[i] * g + b;
        out[i] = v < least ? least : v;
      }
    } else {
      SIMD for (int64_t i = 0; i < n; ++i) {
        const float v = x[i] * g + b + more[i];
        out[i] = v < least ? least : v;
      }
    }
  }
}

void spatial(const Spatial& a, float* out, int64_t begin, int64_t end) {
  const int64_t n = a.width;
  for (int64_t b = begin; b < end; ++b) {
    float* z = out + b * a.num * n;
    for (int64_t i = 0; i < a.num * n; ++i) z[i] = 0.0f;
    for (int64_t r = 0; r < a.rows; ++r) {
      const float* s = a.shared + (b * a.rows + r) * n;
      const float *w = a.weight + r * n, *g = a.gamma, *be = a.beta;
      for (int64_t k = 0; k < a.num; ++k) {
        const float* p = a.action + (b * a.num + k) * n;
        float sum = 0.0f;
        SIMD_SUM(sum) for (int64_t i = 0; i < n; ++i) sum += s[i] + p[i];
        const float mean = sum / static_cast<float>(n);
        float square = 0.0f;
        SIMD_SUM(square) for (int64_t i = 0; i < n; ++i) {
          const float d = s[i] + p[i] - mean;
          square += d * d;
        }
        const float rstd = 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + a.eps);
        a.mean[(b * a.rows + r) * a.num + k] = mean;
        a.rstd[(b * a.rows + r) * a.num + k] = rstd;
        float* zk = z + k * n;
        SIMD for (int64_t i = 0; i < n; ++i) zk[i] +=
            relu((s[i] + p[i] - mean) * rstd * g[i] + be[i]) * w[i];
      }
    }
  }
}

// dgamma, dbeta and dweight point to the block's own sums (zero at first).
template <bool kParams>
void spatial_grad_(const Spatial& a, const SpatialGrad& g, int64_t begin, int64_t end) {
  const int64_t n = a.width;
  const float inv = 1.0f / static_cast<float>(n);
  for (int64_t b = begin; b < end; ++b) {
    float* da = g.daction + b * a.num * n;
    for (int64_t i = 0; i < a.num * n; ++i) da[i] = 0.0f;
    for (int64_t r = 0; r < a.rows; ++r) {
      const float* s = a.shared + (b * a.rows + r) * n;
      const float *w = a.weight + r * n, *ga = a.gamma, *be = a.beta;
      float* ds = g.dshared != nullptr ? g.dshared + (b * a.rows + r) * n : nullptr;
      float* dw = kParams ? g.dweight + r * n : nullptr;
      float *dg = g.dgamma, *db = g.dbeta;
      for (int64_t k = 0; k < a.num; ++k) {
        const float* p = a.action + (b * a.num + k) * n;
        const float* dz = g.dz + (b * a.num + k) * n;
        const float mean = a.mean[(b * a.rows + r) * a.num + k];
        const float rstd = a.rstd[(b * a.rows + r) * a.num + k];
        float s0 = 0.0f, s1 = 0.0f;
        SIMD_SUM(s0, s1) for (int64_t i = 0; i < n; ++i) {
          const float hat = (s[i] + p[i] - mean) * rstd;
          const float y = hat * ga[i] + be[i];
          const float full = dz[i] * w[i];
          const float d = y <= 0.0f ? 0.0f : full;
          if (kParams) {
            dw[i] += relu(y) * dz[i];
            dg[i] += d * hat;
            db[i] += d;
          }
          s0 += d * ga[i];
          s1 += d * ga[i] * hat;
        }
        const float m0 = s0 * inv, m1 = s1 * inv;
        float* dk = da + k * n;
        const bool first = k == 0;
        if (ds == nullptr) {
          SIMD for (int64_t i = 0; i < n; ++i) {
            const float hat = (s[i] + p[i] - mean) * rstd;
            const float y = hat * ga[i] + be[i], full = dz[i] * w[i] * ga[i];
            const float d = y <= 0.0f ? 0.0f : full;
            dk[i] += rstd * (d - m0 - hat * m1);
          }
        } else {
          SIMD for (int64_t i = 0; i < n; ++i) {
            const float hat = (s[i] + p[i] - mean) * rstd;
            const float y = hat * ga[i] + be[i], full = dz[i] * w[i] * ga[i];
            const float d = y <= 0.0f ? 0.0f : full;
            const float dx = rstd * (d - m0 - hat * m1);
            dk[i] += dx;
            const float before = ds[i];
            ds[i] = first ? dx : before + dx;
          }
        }
      }
    }
  }
}

void spatial_grad(const Spatial& a, const SpatialGrad& g, int64_t begin, int64_t end) {
  if (g.dweight != nullptr)
    spatial_grad_<true>(a, g, begin, end);
  else
    spatial_grad_<false>(a, g, begin, end);
}

#include "gemm.h"

void narrow(const Narrow& a, float* y) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* h = a.h + r * a.in;
    for (int64_t o = 0; o < a.out; ++o) {
      const float* w = a.w + o * a.in;
      float sum = 0.0f;
      SIMD_SUM(sum) for (int64_t i = 0; i < a.in; ++i) sum += h[i] * w[i];
      y[r * a.out + o] = a.bias != nullptr ? sum + a.bias[o] : sum;
    }
  }
}

void narrow_dh(const Narrow& a, const float* dy, float* dh) {
  for (int64_t r = 0; r < a.rows; ++r) {
    float* to = dh + r * a.in;
    const float first = dy[r * a.out];
    SIMD for (int64_t i = 0; i < a.in; ++i) to[i] = first * a.w[i];
    for (int64_t o = 1; o < a.out; ++o) {
      const float s = dy[r * a.out + o];
      const float* w = a.w + o * a.in;
      SIMD for (int64_t i = 0; i < a.in; ++i) to[i] += s * w[i];
    }
  }
}

void narrow_dw(const Narrow& a, const float* dy, float* dw, int64_t begin, int64_t end) {
  for (int64_t o = 0; o < a.out; ++o) {
    float* to = dw + o * a.in;
    for (int64_t i = begin; i < end; ++i) to[i] = 0.0f;
    for (int64_t r = 0; r < a.rows; ++r) {
      const float s = dy[r * a.out + o];
      const float* h = a.h + r * a.in;
      SIMD for (int64_t i = begin; i < end; ++i) to[i] += s * h[i];
    }
  }
}

void add(float* into, const float* from, int64_t n) {
  SIMD for (int64_t i = 0; i < n; ++i) into[i] += from[i];
}

void adam(const Adam& a, float* __restrict p, const float* __restrict g, float* __restrict m,
          float* __restrict v, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    m[i] += (1.0f - a.beta1) * (g[i] - m[i]);
    v[i] = a.beta2 * v[i] + (1.0f - a.beta2) * g[i] * g[i];
    p[i] -= a.step_size * m[i] / (__builtin_sqrtf(v[i]) / a.root + a.eps);
  }
}

void lerp(float* __restrict to, const float* __restrict from, float weight, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += weight * (from[i] - to[i]);
}

}  // namespace

extern const Table table;
const Table table = {STRINGIFY(KERNELS_ISA),
                     norm_relu,
                     norm_relu_grad,
                     channel_norm,
                     spatial,
                     spatial_grad,
                     add,
                     adam,
                     lerp,
                     gemm,
                     narrow,
                     narrow_dh,
                     narrow_dw};

}  // namespace KERNELS_ISA
}  // namespace kernels
