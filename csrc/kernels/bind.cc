// Python bindings of the fused kernels: module common_utils.kernels.
//
// An operation's operands are one structure with named fields (kernels.h, mlp.h), made from sizes
// and addresses (torch's data_ptr, 0 for none) by keyword, so that neither libtorch nor a
// conversion is needed. networks/fast/cpu is the only caller and checks shapes, types and
// contiguity; it keeps the tensors alive as long as the structure.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "blocks.h"
#include "kernels.h"
#include "mlp.h"
#include "optim.h"
#include "td_step.h"
#include "../null.h"

namespace py = pybind11;
using null::required;

namespace kernels {
namespace {

const Table& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3_ok = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("bmi2");
  const bool v4_ok = v3_ok && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (v4_ok) return v4::table;
  if (v3_ok) return v3::table;
#endif
  return base::table;
}

const Table& by_name(const std::string& name) {
#if defined(__x86_64__)
  if (name == "v4" && std::string(choose().isa) == "v4") return v4::table;
  if (name == "v3" && std::string(choose().isa) != "base") return v3::table;
#endif
  if (name == "base") return base::table;
  throw py::value_error("kernels.use: '" + name + "' is not an instruction set of this CPU");
}

}  // namespace

const Table* active = &choose();

namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Rows of a product from which a further thread pays, and far more than are multiplied in another
// order (gemm_few).
constexpr int64_t kGemmRows = 64;

void require_array(const char* name, const void* array, bool used) {
  required<char>(name, reinterpret_cast<uintptr_t>(array), used);
}

void check(bool possible) {
  if (!possible) throw py::value_error("kernels: impossible shape");
}

NormRelu make_norm_relu(int64_t groups, int64_t rows, int64_t width, uintptr_t x, uintptr_t bias,
                        bool bias_per_unit, uintptr_t gamma, uintptr_t beta, float eps,
                        uint32_t keep, float scale, uint64_t seed, uintptr_t stats,
                        int64_t first_row, int64_t others) {
  check(groups >= 1 && rows >= 0 && width >= 1);
  float* mean = required<float>("stats", stats, gamma != 0 && rows > 0);
  return {groups,
          rows,
          width,
          required<float>("x", x, rows > 0),
          at<float>(bias),
          bias_per_unit,
          at<float>(gamma),
          required<float>("beta", beta, gamma != 0),
          eps,
          keep,
          scale,
          seed,
          mean,
          mean ? mean + groups * rows : nullptr,
          first_row,
          others};
}

void norm_relu(const NormRelu& a, uintptr_t y, int threads) {
  const int64_t total = a.groups * a.rows;
  float* out = required<float>("y", y, total > 0);
  threads = fit_threads(threads, total * a.width);
  for_blocks(total, threads, threads,
             [&](int64_t, int64_t begin, int64_t end) { active->norm_relu(a, out, begin, end); });
}

NormReluGrad make_norm_relu_grad(uintptr_t dy, uintptr_t dx, uintptr_t dbias, uintptr_t dgamma,
                                 uintptr_t dbeta) {
  return {at<float>(dy), at<float>(dx), at<float>(dbias), at<float>(dgamma),
          required<float>("dbeta", dbeta, dgamma != 0)};
}

void norm_relu_grad(const NormRelu& a, const NormReluGrad& to, int threads) {
  require_array("dy", to.dy, a.rows > 0);
  require_array("dx", to.dx, a.rows > 0);
  // a block is within one group and has its own sums over rows
  const int64_t groups = a.groups, rows = a.rows, width = a.width;
  const int64_t per_group = std::max<int64_t>(1, std::min<int64_t>(rows, kBlocks / groups));
  const int64_t blocks = groups * per_group, bias_width = a.bias_per_unit ? width : 1;
  std::vector<float> bias_sums(to.dbias ? blocks * bias_width : 0, 0.0f);
  std::vector<float> norm_sums(to.dgamma ? blocks * 2 * width : 0, 0.0f);
  threads = fit_threads(threads, groups * rows * width);
  for_blocks(blocks, blocks, threads, [&](int64_t block, int64_t, int64_t) {
    const int64_t group = block / per_group, part = block % per_group;
    NormReluGrad g{to.dy, to.dx, nullptr, nullptr, nullptr};
    if (to.dbias) g.dbias = &bias_sums[block * bias_width];
    if (to.dgamma) {
      g.dgamma = &norm_sums[block * 2 * width];
      g.dbeta = g.dgamma + width;
    }
    active->norm_relu_grad(a, g, group * rows + rows * part / per_group,
                           group * rows + rows * (part + 1) / per_group);
  });
  for (int64_t block = 0; block < blocks; ++block) {
    if (to.dbias) {
      active->add(to.dbias + block / per_group * bias_width, &bias_sums[block * bias_width],
                  bias_width);
    }
    if (to.dgamma) {
      active->add(to.dgamma, &norm_sums[block * 2 * width], width);
      active->add(to.dbeta, &norm_sums[block * 2 * width + width], width);
    }
  }
}

ChannelNorm make_channel_norm(int64_t pictures, int64_t channels, int64_t size, uintptr_t x,
                              bool channels_last, uintptr_t gamma, uintptr_t beta,
                              uintptr_t residual, float eps, bool relu) {
  check(pictures >= 0 && channels >= 1 && size >= 1);
  return {pictures,
          channels,
          size,
          required<float>("x", x, pictures > 0),
          channels_last,
          required<float>("gamma", gamma),
          required<float>("beta", beta),
          at<float>(residual),
          eps,
          relu};
}

void channel_norm(const ChannelNorm& a, uintptr_t y, int threads) {
  const int64_t per_picture = a.channels_last ? (a.channels + 63) / 64 : a.channels;
  const int64_t total = a.pictures * per_picture;
  float* out = required<float>("y", y, total > 0);
  threads = fit_threads(threads, a.pictures * a.channels * a.size);
  for_blocks(total, threads, threads, [&](int64_t, int64_t begin, int64_t end) {
    active->channel_norm(a, out, begin, end);
  });
}

Spatial make_spatial(int64_t batch, int64_t rows, int64_t num, int64_t width, uintptr_t shared,
                     uintptr_t action, uintptr_t gamma, uintptr_t beta, uintptr_t weight, float eps,
                     uintptr_t stats) {
  check(batch >= 0 && rows >= 1 && num >= 1 && width >= 1);
  float* mean = required<float>("stats", stats, batch > 0);
  return {batch,
          rows,
          num,
          width,
          required<float>("shared", shared, batch > 0),
          required<float>("action", action, batch > 0),
          required<float>("gamma", gamma),
          required<float>("beta", beta),
          required<float>("weight", weight),
          eps,
          mean,
          mean + batch * rows * num};
}

void spatial(const Spatial& a, uintptr_t out, int threads) {
  float* z = required<float>("out", out, a.batch > 0);
  threads = fit_threads(threads, a.batch * a.rows * a.num * a.width);
  for_blocks(a.batch, threads, threads,
             [&](int64_t, int64_t begin, int64_t end) { active->spatial(a, z, begin, end); });
}

SpatialGrad make_spatial_grad(uintptr_t dz, uintptr_t dshared, uintptr_t daction, uintptr_t dgamma,
                              uintptr_t dbeta, uintptr_t dweight) {
  if ((dgamma != 0) != (dweight != 0) || (dgamma != 0) != (dbeta != 0)) {
    throw py::value_error("kernels: gradients of all parameters or of none");
  }
  return {at<float>(dz),     at<float>(dshared), at<float>(daction),
          at<float>(dgamma), at<float>(dbeta),   at<float>(dweight)};
}

void spatial_grad(const Spatial& a, const SpatialGrad& to, int threads) {
  require_array("dz", to.dz, a.batch > 0);
  require_array("daction", to.daction, a.batch > 0);
  const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(kBlocks, a.batch));
  const int64_t width = a.width, params = (2 + a.rows) * width;  // dgamma, dbeta, dweight
  std::vector<float> sums(to.dgamma ? blocks * params : 0, 0.0f);
  threads = fit_threads(threads, a.batch * a.rows * a.num * width);
  for_blocks(a.batch, blocks, threads, [&](int64_t block, int64_t begin, int64_t end) {
    SpatialGrad g{to.dz, to.dshared, to.daction, nullptr, nullptr, nullptr};
    if (to.dgamma) {
      g.dgamma = &sums[block * params];
      g.dbeta = g.dgamma + width;
      g.dweight = g.dbeta + width;
    }
    active->spatial_grad(a, g, begin, end);
  });
  for (int64_t block = 0; to.dgamma && block < blocks; ++block) {
    active->add(to.dgamma, &sums[block * params], width);
    active->add(to.dbeta, &sums[block * params + width], width);
    active->add(to.dweight, &sums[block * params + 2 * width], a.rows * width);
  }
}

Gemm make_gemm(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, bool ta, uintptr_t b,
               int64_t ldb, bool tb, uintptr_t bias) {
  check(m >= 1 && n >= 1 && k >= 1 && lda >= (ta ? m : k) && ldb >= (tb ? k : n));
  Gemm g{m, n, k, required<float>("a", a), lda, ta, required<float>("b", b), ldb, tb, nullptr, n};
  g.bias = at<float>(bias);
  return g;
}

void py_gemm(const Gemm& all, uintptr_t c, int threads) {
  float* const to = required<float>("c", c);
  const int64_t parts = std::max<int64_t>(1, all.m / kGemmRows);
  threads = fit_threads(threads, all.m * all.n);
  for_blocks(all.m, std::min<int64_t>(threads, parts), threads,
             [&](int64_t, int64_t begin, int64_t end) {
               thread_local std::vector<float> scratch(kGemmScratch);
               Gemm g = all;
               g.m = end - begin;
               g.a += begin * (g.ta ? 1 : g.lda);
               g.c = to + begin * g.ldc;
               active->gemm(g, scratch.data());
             });
}

MlpLayer make_mlp_layer(int64_t inputs, int64_t outputs, uintptr_t w, bool transposed,
                        uintptr_t bias, bool bias_per_unit, uintptr_t gamma, uintptr_t beta,
                        float eps, uint32_t keep, float scale, uint64_t seed, bool hidden) {
  check(inputs >= 1 && outputs >= 1);
  return {inputs,
          outputs,
          required<float>("w", w),
          transposed,
          at<float>(bias),
          bias_per_unit,
          at<float>(gamma),
          required<float>("beta", beta, gamma != 0),
          eps,
          keep,
          scale,
          seed,
          hidden};
}

Mlp make_mlp(int64_t rows, uintptr_t x, std::vector<int64_t> members, std::vector<MlpLayer> layers,
             int64_t first_row, int64_t others) {
  check(rows >= 0 && !members.empty() && !layers.empty());
  for (size_t i = 1; i < layers.size(); ++i) check(layers[i - 1].out == layers[i].in);
  float* in = required<float>("x", x, rows > 0);
  return {rows, in, std::move(members), std::move(layers), first_row, others};
}

MlpLayerGrad make_mlp_layer_grad(uintptr_t dw, uintptr_t dbias, uintptr_t dgamma, uintptr_t dbeta) {
  return {at<float>(dw), at<float>(dbias), at<float>(dgamma),
          required<float>("dbeta", dbeta, dgamma != 0)};
}

void py_mlp(const Mlp& a, uintptr_t out, uintptr_t saved, bool hidden, int threads) {
  mlp(a, required<float>("out", out, a.rows > 0), at<float>(saved), hidden, threads);
}

void py_mlp_grad(const Mlp& a, uintptr_t saved, bool hidden, uintptr_t dout, uintptr_t dx,
                 const std::vector<MlpLayerGrad>& layers, int threads) {
  if (!layers.empty() && (layers.size() != a.layers.size() || !hidden)) {
    throw py::value_error("kernels: gradients of weights need every layer and its input");
  }
  const float* kept = required<float>("saved", saved, mlp_saved_size(a, hidden) > 0);
  const float* from = required<float>("dout", dout, a.rows > 0);
  mlp_grad(a, kept, hidden, from, at<float>(dx), layers, threads);
}

void py_mlp_grad_picked(const Mlp& a, uintptr_t saved, bool hidden, uintptr_t pick, uintptr_t dout,
                        uintptr_t dx, int threads) {
  const int64_t num = static_cast<int64_t>(a.members.size());
  const int64_t* picked = required<int64_t>("pick", pick, a.rows > 0);
  for (int64_t r = 0; r < a.rows; ++r) {
    if (picked[r] < 0 || picked[r] >= num) throw py::value_error("kernels: no such member");
  }
  const float* kept = required<float>("saved", saved, mlp_saved_size(a, hidden) > 0);
  const float* from = required<float>("dout", dout, a.rows > 0);
  mlp_grad_picked(a, kept, hidden, picked, from, required<float>("dx", dx, a.rows > 0), threads);
}

AdamTensor make_adam_tensor(int64_t n, uintptr_t weight, uintptr_t grad, uintptr_t exp_avg,
                            uintptr_t exp_avg_sq, uintptr_t step) {
  check(n >= 0);
  return {n,
          required<float>("weight", weight, n > 0),
          at<float>(grad),
          required<float>("exp_avg", exp_avg, n > 0),
          required<float>("exp_avg_sq", exp_avg_sq, n > 0),
          required<float>("step", step)};
}

void py_adam(const std::vector<AdamTensor>& tensors, const AdamRule& rule, int threads) {
  for (const AdamTensor& t : tensors) require_array("grad", t.grad, t.n > 0);
  adam(tensors, rule, threads);
}

LerpTensor make_lerp_tensor(int64_t n, uintptr_t to, uintptr_t from) {
  check(n >= 0);
  return {n, required<float>("to", to, n > 0), required<float>("from_", from, n > 0)};
}

std::unique_ptr<TdStep> make_td_step(std::vector<MlpLayer> layers, int64_t members,
                                     std::vector<AdamTensor> weights,
                                     std::vector<uintptr_t> follow) {
  check(!layers.empty() && members >= 1 && layers.back().out == 1 && !layers.back().hidden);
  for (size_t i = 1; i < layers.size(); ++i) check(layers[i - 1].out == layers[i].in);
  std::vector<float*> targets;
  for (uintptr_t target : follow) targets.push_back(required<float>("follow", target));
  return std::make_unique<TdStep>(std::move(layers), members, std::move(weights),
                                  std::move(targets));
}

float py_td_step(TdStep& step, int64_t rows, uintptr_t x, uintptr_t target, const AdamRule& rule,
                 float tau, int threads) {
  check(rows >= 1);
  return step.run(rows, required<float>("x", x), required<float>("target", target), rule, tau,
                  threads);
}

}  // namespace

PYBIND11_MODULE(kernels, m) {
  m.doc() = "Fused float32 kernels on raw addresses; see networks/fast/cpu.";
  using py::arg;
  const py::kw_only named;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();

  py::class_<NormRelu>(m, "NormRelu", "relu(dropout(layer_norm(x + bias)))")
      .def(py::init(&make_norm_relu), named, arg("groups"), arg("rows"), arg("width"), arg("x"),
           arg("bias"), arg("bias_per_unit"), arg("gamma"), arg("beta"), arg("eps"), arg("keep"),
           arg("scale"), arg("seed"), arg("stats"), arg("first_row") = 0, arg("others") = 0);
  py::class_<NormReluGrad>(m, "NormReluGrad")
      .def(py::init(&make_norm_relu_grad), named, arg("dy"), arg("dx"), arg("dbias"), arg("dgamma"),
           arg("dbeta"));
  m.def("norm_relu", &norm_relu, unlocked, arg("operands"), named, arg("y"), arg("threads"));
  m.def("norm_relu_grad", &norm_relu_grad, unlocked, arg("operands"), arg("grad"), named,
        arg("threads"));

  py::class_<ChannelNorm>(m, "ChannelNorm", "norm(x) (+ residual), each channel by itself")
      .def(py::init(&make_channel_norm), named, arg("pictures"), arg("channels"), arg("size"),
           arg("x"), arg("channels_last"), arg("gamma"), arg("beta"), arg("residual"), arg("eps"),
           arg("relu"));
  m.def("channel_norm", &channel_norm, unlocked, arg("operands"), named, arg("y"), arg("threads"));

  py::class_<Spatial>(m, "Spatial", "sum over rows of relu(norm(shared + action)) * weight")
      .def(py::init(&make_spatial), named, arg("batch"), arg("rows"), arg("num"), arg("width"),
           arg("shared"), arg("action"), arg("gamma"), arg("beta"), arg("weight"), arg("eps"),
           arg("stats"));
  py::class_<SpatialGrad>(m, "SpatialGrad")
      .def(py::init(&make_spatial_grad), named, arg("dz"), arg("dshared"), arg("daction"),
           arg("dgamma"), arg("dbeta"), arg("dweight"));
  m.def("spatial", &spatial, unlocked, arg("operands"), named, arg("out"), arg("threads"));
  m.def("spatial_grad", &spatial_grad, unlocked, arg("operands"), arg("grad"), named,
        arg("threads"));

  py::class_<Gemm>(m, "Gemm", "op(a) op(b) + bias")
      .def(py::init(&make_gemm), named, arg("m"), arg("n"), arg("k"), arg("a"), arg("lda"),
           arg("ta"), arg("b"), arg("ldb"), arg("tb"), arg("bias"));
  m.def("gemm", &py_gemm, unlocked, arg("operands"), named, arg("c"), arg("threads"));

  py::class_<MlpLayer>(m, "MlpLayer")
      .def(py::init(&make_mlp_layer), named, arg("inputs"), arg("outputs"), arg("w"),
           arg("transposed"), arg("bias"), arg("bias_per_unit"), arg("gamma"), arg("beta"),
           arg("eps"), arg("keep"), arg("scale"), arg("seed"), arg("hidden"));
  py::class_<Mlp>(m, "Mlp", "perceptrons side by side on the same rows")
      .def(py::init(&make_mlp), named, arg("rows"), arg("x"), arg("members"), arg("layers"),
           arg("first_row") = 0, arg("others") = 0)
      .def(
          "saved_size", [](const Mlp& a, bool hidden) { return mlp_saved_size(a, hidden); },
          "floats that the backward pass needs", named, arg("hidden"));
  py::class_<MlpLayerGrad>(m, "MlpLayerGrad")
      .def(py::init(&make_mlp_layer_grad), named, arg("dw"), arg("dbias"), arg("dgamma"),
           arg("dbeta"));
  m.def("mlp", &py_mlp, unlocked, arg("operands"), named, arg("out"), arg("saved"), arg("hidden"),
        arg("threads"));
  m.def("mlp_grad", &py_mlp_grad, unlocked, arg("operands"), named, arg("saved"), arg("hidden"),
        arg("dout"), arg("dx"), arg("layers"), arg("threads"));
  m.def("mlp_grad_picked", &py_mlp_grad_picked, unlocked, arg("operands"), named, arg("saved"),
        arg("hidden"), arg("pick"), arg("dout"), arg("dx"), arg("threads"));

  py::class_<AdamRule>(m, "AdamRule")
      .def(py::init<double, double, double, double>(), named, arg("lr"), arg("beta1"), arg("beta2"),
           arg("eps"));
  py::class_<AdamTensor>(m, "AdamTensor")
      .def(py::init(&make_adam_tensor), named, arg("n"), arg("weight"), arg("grad"), arg("exp_avg"),
           arg("exp_avg_sq"), arg("step"));
  m.def("adam", &py_adam, unlocked, arg("tensors"), arg("rule"), named, arg("threads"));
  py::class_<LerpTensor>(m, "LerpTensor")
      .def(py::init(&make_lerp_tensor), named, arg("n"), arg("to"), arg("from_"));
  m.def("lerp", &lerp, unlocked, arg("tensors"), named, arg("weight"), arg("threads"));

  py::class_<TdStep>(m, "TdStep", "one step of an ensemble on its squared error, and its target's")
      .def(py::init(&make_td_step), named, arg("layers"), arg("members"), arg("weights"),
           arg("follow"))
      .def("run", &py_td_step, unlocked, named, arg("rows"), arg("x"), arg("target"), arg("rule"),
           arg("tau"), arg("threads"));

  m.def("isa", [] { return std::string(active->isa); }, "the instruction set in use");
  m.def("use", [](const std::string& isa) { active = &by_name(isa); }, arg("isa"));
}

}  // namespace kernels
