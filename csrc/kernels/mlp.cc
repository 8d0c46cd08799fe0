#include "mlp.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"
#include "../workers.h"

namespace kernels {
namespace {

constexpr int64_t kNarrow = 8;      // outputs up to which a layer is not worth a matrix product
constexpr int64_t kRowBlock = 64;   // rows per block in sums over the batch
constexpr int64_t kLeastShare = 8;  // rows of one member that are worth a matrix product
constexpr int64_t kSmall =
    1 << 21;  // multiplications below which a thread costs more than it saves

// A caller's memory for itself and its helpers, kept from call to call.
class Scratch {
 public:
  float* get(int64_t floats) {
    if (floats > size_) {
      data_.reset();
      const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
      data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      size_ = data_ != nullptr ? floats : 0;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float[], Free> data_;
  int64_t size_ = 0;
};
thread_local Scratch call_scratch;

int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

int64_t share(int64_t n, int rank, int size) { return size == 0 ? 0 : n * rank / size; }

int64_t widest(const Mlp& a) {
  int64_t width = 1;
  for (const auto& l : a.layers) width = std::max(width, l.out);
  return width;
}

int64_t narrow_size(const Mlp& a) {  // a copy of a narrow layer's weights
  int64_t size = 0;
  for (const auto& l : a.layers) size = l.out <= kNarrow ? std::max(size, l.in * l.out) : size;
  return size;
}

int team_size(const Mlp& a, int threads) {
  int64_t weights = 0;
  for (const auto& l : a.layers) weights += l.in * l.out;
  const int64_t work = weights * a.rows * static_cast<int64_t>(a.members.size());
  const int64_t most = std::min(work / kSmall, (a.rows + kRowBlock - 1) / kRowBlock);
  return static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, most)));
}

// A thread's part of a member's work: number `rank` of `size`.
struct Part {
  int rank, size;
};

// Members are shared out whole, so that a thread's cache holds only its own members' weights; what
// is left over is done by all threads together. 0 of 0: nothing.
Part part_of(const Mlp& a, int64_t member, int rank, int size) {
  const int64_t whole = static_cast<int64_t>(a.members.size()) / size * size;
  if (member >= whole) return {rank, size};
  return member % size == rank ? Part{0, 1} : Part{0, 0};
}

// Where the forward pass left what belongs to a layer, for all members.
struct Saved {
  float* z;  // before bias and norm
  float* mean;
  float* rstd;
  float* h;  // after everything
};

std::vector<Saved> saved_parts(const Mlp& a, float* base, bool hidden, int64_t* total = nullptr) {
  const int64_t rows = static_cast<int64_t>(a.members.size()) * a.rows;
  std::vector<Saved> parts;
  int64_t at = 0;
  auto take = [&](int64_t n) {
    float* p = base == nullptr ? nullptr : base + at;
    at += n;
    return p;
  };
  for (const auto& l : a.layers) {
    Saved s{};
    if (l.hidden) {
      s.z = take(rows * l.out);
      s.mean = take(rows);
      s.rstd = take(rows);
      if (hidden) s.h = take(rows * l.out);
    }
    parts.push_back(s);
  }
  if (total != nullptr) *total = at;
  return parts;
}

const float* weight_of(const MlpLayer& l, int64_t member) { return l.w + member * l.in * l.out; }

const float* bias_of(const MlpLayer& l, int64_t member) {
  return l.bias == nullptr ? nullptr : l.bias + member * (l.bias_per_unit ? l.out : 1);
}

bool narrow(const MlpLayer& l) { return l.out <= kNarrow && !l.hidden; }

// The weights as [out, in]: in place, or copied to `to`.
const float* by_output(const MlpLayer& l, const float* w, float* to) {
  if (l.transposed || l.out == 1) return w;
  for (int64_t i = 0; i < l.in; ++i) {
    for (int64_t o = 0; o < l.out; ++o) to[o * l.in + i] = w[i * l.out + o];
  }
  return to;
}

// What the dropout generator calls a row of the member at position p.
int64_t named(const Mlp& a, int64_t p, int64_t row) {
  return p * (a.rows + a.others) + a.first_row + row;
}

NormRelu norm_relu_of(const MlpLayer& l, int64_t member, int64_t first_row, int64_t rows,
                      const float* z, float* mean, float* rstd) {
  return {1,
          rows,
          l.out,
          z,
          bias_of(l, member),
          l.bias_per_unit,
          l.gamma,
          l.beta,
          l.eps,
          l.keep,
          l.scale,
          l.seed,
          mean,
          rstd,
          first_row};
}

// z [rows, out] = h [rows, in] w
void linear(const MlpLayer& l, int64_t member, int64_t rows, const float* h, float* z,
            float* scratch) {
  const float* w = weight_of(l, member);
  if (narrow(l)) {
    active->narrow({rows, l.in, l.out, h, by_output(l, w, scratch), nullptr}, z);
    return;
  }
  active->gemm(
      {rows, l.out, l.in, h, l.in, false, w, l.transposed ? l.in : l.out, l.transposed, z, l.out},
      scratch);
}

// dh [rows, in] = (dh +) dz [rows, out] w^T
void linear_dh(const MlpLayer& l, int64_t member, int64_t rows, const float* dz, float* dh,
               bool add, float* scratch) {
  const float* w = weight_of(l, member);
  if (narrow(l) && !add) {
    active->narrow_dh({rows, l.in, l.out, nullptr, by_output(l, w, scratch), nullptr}, dz, dh);
    return;
  }
  active->gemm({rows, l.in, l.out, dz, l.out, false, w, l.transposed ? l.in : l.out, !l.transposed,
                dh, l.in, add},
               scratch);
}

// This rank's share of dw.
void linear_dw(const MlpLayer& l, int64_t rows, const float* h, const float* dz, float* dw,
               int rank, int size, float* scratch) {
  if (narrow(l)) {
    const int64_t begin = share(l.in, rank, size), end = share(l.in, rank + 1, size);
    const bool copy = !l.transposed && l.out > 1;
    float* to = copy ? scratch : dw;
    active->narrow_dw({rows, l.in, l.out, h, nullptr, nullptr}, dz, to, begin, end);
    for (int64_t i = begin; copy && i < end; ++i) {
      for (int64_t o = 0; o < l.out; ++o) dw[i * l.out + o] = to[o * l.in + i];
    }
    return;
  }
  const float *a = l.transposed ? dz : h, *b = l.transposed ? h : dz;
  const int64_t m = l.transposed ? l.out : l.in, n = l.transposed ? l.in : l.out;
  const int64_t begin = share(m, rank, size), end = share(m, rank + 1, size);
  active->gemm({end - begin, n, rows, a + begin, m, true, b, n, false, dw + begin * n, n}, scratch);
}

void add_bias(const MlpLayer& l, int64_t member, int64_t rows, float* z) {
  const float* bias = bias_of(l, member);
  if (bias == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < l.out; ++o) z[r * l.out + o] += bias[l.bias_per_unit ? o : 0];
  }
}

// Rows [begin, begin + rows) of one member, through all layers.
void forward_rows(const Mlp& a, int64_t p, int64_t begin, int64_t rows,
                  const std::vector<Saved>& saved, float* out, float* scratch, float* room) {
  const int64_t member = a.members[p], first = p * a.rows + begin;
  const int64_t width = widest(a);
  const float* h = a.x + begin * a.layers[0].in;
  for (size_t i = 0; i < a.layers.size(); ++i) {
    const MlpLayer& l = a.layers[i];
    const Saved& s = saved[i];
    const bool last = i + 1 == a.layers.size();
    float* free = room + (i % 2) * rows * width;
    float* to = last ? out + first * l.out : s.h != nullptr ? s.h + first * l.out : free;
    if (!l.hidden) {
      linear(l, member, rows, h, to, scratch);
      add_bias(l, member, rows, to);
    } else {
      float* z = s.z != nullptr ? s.z + first * l.out : to;
      float* mean = s.mean != nullptr ? s.mean + first : room + 2 * rows * width;
      float* rstd = s.rstd != nullptr ? s.rstd + first : mean + rows;
      linear(l, member, rows, h, z, scratch);
      active->norm_relu(norm_relu_of(l, member, named(a, p, begin), rows, z, mean, rstd), to, 0,
                        rows);
    }
    h = to;
  }
}

// Sums over the batch, one part per block of rows; the parts are added up in order at the end.
class Sums {
 public:
  Sums(const Mlp& a, const std::vector<MlpLayerGrad>& grads, int64_t blocks)
      : a_(a), grads_(grads), blocks_(blocks), norm_(a.layers.size()), bias_(a.layers.size()) {
    for (size_t i = 0; i < grads.size(); ++i) {
      const int64_t width = a.layers[i].out;
      if (grads[i].dgamma != nullptr) {
        norm_[i].assign(a.members.size() * blocks * 2 * width, 0.0f);
      }
      if (grads[i].dbias != nullptr) {
        bias_[i].assign(a.members.size() * blocks * bias_width(i), 0.0f);
      }
    }
  }

  float* dgamma(size_t layer, int64_t p, int64_t block) {
    if (norm_[layer].empty()) return nullptr;
    return &norm_[layer][(p * blocks_ + block) * 2 * a_.layers[layer].out];
  }

  float* dbias(size_t layer, int64_t p, int64_t block) {
    if (bias_[layer].empty()) return nullptr;
    return &bias_[layer][(p * blocks_ + block) * bias_width(layer)];
  }

  int64_t bias_width(size_t layer) const {
    return a_.layers[layer].bias_per_unit ? a_.layers[layer].out : 1;
  }

  void finish() {
    for (size_t i = 0; i < grads_.size(); ++i) {
      const int64_t width = a_.layers[i].out, bias = bias_width(i);
      const int64_t sums = static_cast<int64_t>(a_.members.size()) * blocks_;
      for (int64_t b = 0; b < sums && !norm_[i].empty(); ++b) {
        active->add(grads_[i].dgamma, dgamma(i, 0, b), width);
        active->add(grads_[i].dbeta, dgamma(i, 0, b) + width, width);
      }
      for (size_t p = 0; p < a_.members.size() && !bias_[i].empty(); ++p) {
        for (int64_t b = 0; b < blocks_; ++b) {
          active->add(grads_[i].dbias + a_.members[p] * bias, dbias(i, p, b), bias);
        }
      }
    }
  }

 private:
  const Mlp& a_;
  const std::vector<MlpLayerGrad>& grads_;
  const int64_t blocks_;
  std::vector<std::vector<float>> norm_, bias_;
};

// dz of a layer for one block of rows, from dy of its output.
const float* through_norm(const MlpLayer& l, const NormRelu& n, const float* dy, float* dz,
                          float* dgamma, float* dbias) {
  NormReluGrad g{dy, dz, dbias, dgamma, dgamma == nullptr ? nullptr : dgamma + l.out};
  active->norm_relu_grad(n, g, 0, n.rows);
  return dz;
}

void sum_rows(const float* dz, int64_t rows, int64_t width, bool per_unit, float* into) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < width; ++o) into[per_unit ? o : 0] += dz[r * width + o];
  }
}

}  // namespace

int64_t mlp_saved_size(const Mlp& a, bool hidden) {
  int64_t total = 0;
  saved_parts(a, nullptr, hidden, &total);
  return total;
}

void mlp(const Mlp& a, float* out, float* saved, bool hidden, int threads) {
  const auto parts = saved_parts(a, saved, hidden);
  const int64_t width = widest(a);
  const int size = team_size(a, threads);
  const int64_t work = whole_lines(std::max(kGemmScratch, narrow_size(a)));
  const int64_t own = work + whole_lines(a.rows * (2 * width + 2));
  float* const memory = call_scratch.get(size * own);
  workers::pool().run(size, [&](int rank) {
    float* scratch = memory + rank * own;
    for (int64_t p = 0; p < static_cast<int64_t>(a.members.size()); ++p) {
      const Part part = part_of(a, p, rank, size);
      const int64_t begin = share(a.rows, part.rank, part.size);
      const int64_t rows = share(a.rows, part.rank + 1, part.size) - begin;
      if (rows > 0) forward_rows(a, p, begin, rows, parts, out, scratch, scratch + work);
    }
  });
}

void mlp_grad(const Mlp& a, const float* saved, bool hidden, const float* dout, float* dx,
              const std::vector<MlpLayerGrad>& grads, int threads) {
  const auto parts = saved_parts(a, const_cast<float*>(saved), hidden);
  const int64_t layers = static_cast<int64_t>(a.layers.size());
  const int64_t blocks = std::max<int64_t>(1, (a.rows + kRowBlock - 1) / kRowBlock);
  Sums sums(a, grads, blocks);
  const int size = team_size(a, threads);
  workers::Barrier barrier(size);
  // of one member at a time: dh, and dz of every layer
  std::vector<int64_t> dz_at{a.rows * widest(a)};
  for (const auto& l : a.layers) dz_at.push_back(dz_at.back() + (l.hidden ? a.rows * l.out : 0));
  const int64_t work = whole_lines(std::max(kGemmScratch, narrow_size(a)));
  const int64_t own = work + whole_lines(dz_at.back());
  float* const memory = call_scratch.get((size + 1) * own);  // one's own, and all threads'
  workers::pool().run(size, [&](int rank) {
    float* scratch = memory + rank * own;
    for (int64_t p = 0; p < static_cast<int64_t>(a.members.size()); ++p) {
      // dx sums over the members: its rows belong to one thread each
      const Part part = dx != nullptr ? Part{rank, size} : part_of(a, p, rank, size);
      if (part.size == 0) continue;
      const bool together = part.size > 1;
      float* const dh = (together ? memory + size * own : scratch) + work;
      auto dz_of = [&](int64_t layer) { return dh + dz_at[layer]; };
      const int64_t first_block = share(blocks, part.rank, part.size);
      const int64_t end_block = share(blocks, part.rank + 1, part.size);
      const int64_t begin = std::min(a.rows, first_block * kRowBlock);
      const int64_t rows = std::min(a.rows, end_block * kRowBlock) - begin;
      const int64_t member = a.members[p];
      const float* all_dout = dout + p * a.rows * a.layers.back().out;
      const float* dy = all_dout;  // [rows of the batch, out of the layer]
      for (int64_t i = layers - 1; i >= 0; --i) {
        const MlpLayer& l = a.layers[i];
        for (int64_t b = first_block; b < end_block; ++b) {
          const int64_t r = b * kRowBlock, n = std::min(a.rows - r, kRowBlock);
          const int64_t first = p * a.rows + r;
          float* dbias = sums.dbias(i, p, b);
          if (l.hidden) {
            const auto norm = norm_relu_of(l, member, named(a, p, r), n, parts[i].z + first * l.out,
                                           parts[i].mean + first, parts[i].rstd + first);
            through_norm(l, norm, dy + r * l.out, dz_of(i) + r * l.out, sums.dgamma(i, p, b),
                         dbias);
          } else if (dbias != nullptr) {
            sum_rows(dy + r * l.out, n, l.out, l.bias_per_unit, dbias);
          }
        }
        const float* dz = l.hidden ? dz_of(i) : dy;
        if (rows == 0 || (i == 0 && dx == nullptr)) continue;
        float* to = (i == 0 ? dx : dh) + begin * l.in;
        linear_dh(l, member, rows, dz + begin * l.out, to, i == 0 && p > 0, scratch);
        dy = dh;
      }
      if (together) barrier.wait();
      for (int64_t i = layers - 1; i >= 0 && !grads.empty(); --i) {
        const MlpLayer& l = a.layers[i];
        if (grads[i].dw == nullptr) continue;
        const float* h = i == 0 ? a.x : parts[i - 1].h + p * a.rows * a.layers[i - 1].out;
        linear_dw(l, a.rows, h, l.hidden ? dz_of(i) : all_dout, grads[i].dw + member * l.in * l.out,
                  part.rank, part.size, scratch);
      }
      if (together) barrier.wait();
    }
  });
  sums.finish();
}

void mlp_grad_picked(const Mlp& a, const float* saved, bool hidden, const int64_t* pick,
                     const float* dout, float* dx, int threads) {
  const auto parts = saved_parts(a, const_cast<float*>(saved), hidden);
  const int64_t layers = static_cast<int64_t>(a.layers.size());
  const int64_t width = std::max(widest(a), a.layers[0].in);
  std::vector<std::vector<int64_t>> rows_of(a.members.size());
  for (int64_t r = 0; r < a.rows; ++r) rows_of[pick[r]].push_back(r);
  const int size = team_size(a, threads);
  const int64_t most = std::max(a.rows / size + 1, 2 * kLeastShare);  // of one member on one thread
  const int64_t work = whole_lines(std::max(kGemmScratch, narrow_size(a)));
  const int64_t own = work + whole_lines(most * (3 * width + 2));
  float* const memory = call_scratch.get(size * own);
  workers::pool().run(size, [&](int rank) {
    float* scratch = memory + rank * own;
    float* const dy = scratch + work;
    float *const z = dy + most * width, *const dz = z + most * width, *mean = dz + most * width;
    for (int64_t p = 0; p < static_cast<int64_t>(a.members.size()); ++p) {
      const int64_t all = static_cast<int64_t>(rows_of[p].size());
      // few rows are multiplied in another order (gemm_few): a share is never made of so few
      const int sharing = static_cast<int>(std::clamp<int64_t>(all / kLeastShare, 1, size));
      const int part = static_cast<int>((rank + p) % size);
      if (part >= sharing) continue;
      const int64_t* rows = rows_of[p].data() + share(all, part, sharing);
      const int64_t n = share(all, part + 1, sharing) - share(all, part, sharing);
      if (n == 0) continue;
      auto gather = [&](const float* from, int64_t size, float* to) {
        for (int64_t r = 0; r < n; ++r) {
          std::copy_n(from + rows[r] * size, size, to + r * size);
        }
      };
      gather(dout, a.layers.back().out, dy);
      for (int64_t i = layers - 1; i >= 0; --i) {
        const MlpLayer& l = a.layers[i];
        const float* dlayer = dy;
        if (l.hidden) {
          const int64_t first = p * a.rows;
          gather(parts[i].z + first * l.out, l.out, z);
          gather(parts[i].mean + first, 1, mean);
          gather(parts[i].rstd + first, 1, mean + n);
          dlayer = through_norm(l, norm_relu_of(l, a.members[p], 0, n, z, mean, mean + n), dy, dz,
                                nullptr, nullptr);
        } else {
          std::copy_n(dy, n * l.out, dz);
          dlayer = dz;
        }
        linear_dh(l, a.members[p], n, dlayer, dy, false, scratch);
      }
      const int64_t in = a.layers[0].in;
      for (int64_t r = 0; r < n; ++r) std::copy_n(dy + r * in, in, dx + rows[r] * in);
    }
  });
}

}  // namespace kernels
