// Python face of the fused kernels: module common_utils.kernels.
//
// Tensors come in as addresses (torch's data_ptr), so that neither libtorch nor a conversion is
// needed; networks/fast/cpu is the only caller and checks shapes, types and contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "kernels_mlp.h"
#include "workers.h"

namespace py = pybind11;

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

// Cut [0, n) in `blocks` equal parts and run fn(block, begin, end), on up to `threads` threads.
template <typename Fn>
void for_blocks(int64_t n, int64_t blocks, int threads, const Fn& fn) {
    auto run = [&](int64_t first, int64_t step) {
        for (int64_t i = first; i < blocks; i += step) fn(i, n * i / blocks, n * (i + 1) / blocks);
    };
    const int64_t size = std::max<int64_t>(1, std::min<int64_t>(threads, blocks));
    workers::pool().run(static_cast<int>(size), [&](int rank) { run(rank, size); });
}

// Below this many elements a thread costs more than it saves.
constexpr int64_t kSmall = 1 << 16;
// Blocks whose sums are kept apart: more threads than this bring nothing.
constexpr int64_t kBlocks = 8;

int fit_threads(int threads, int64_t elements) { return elements < kSmall ? 1 : threads; }

NormRelu norm_relu_args(int64_t groups, int64_t rows, int64_t width, uintptr_t x, uintptr_t bias,
                        bool per_unit, uintptr_t gamma, uintptr_t beta, float eps, uint32_t keep,
                        float scale, uint64_t seed, uintptr_t stats) {
    if (groups < 1 || rows < 0 || width < 1) throw py::value_error("kernels: impossible shape");
    float* mean = at<float>(stats);
    return {groups, rows, width, at<float>(x), at<float>(bias), per_unit, at<float>(gamma),
            at<float>(beta), eps, keep, scale, seed, mean, mean ? mean + groups * rows : nullptr};
}

void norm_relu(int64_t groups, int64_t rows, int64_t width, uintptr_t x, uintptr_t bias,
               bool per_unit, uintptr_t gamma, uintptr_t beta, float eps, uint32_t keep,
               float scale, uint64_t seed, uintptr_t stats, uintptr_t y, int threads) {
    const NormRelu a = norm_relu_args(groups, rows, width, x, bias, per_unit, gamma, beta, eps,
                                      keep, scale, seed, stats);
    const int64_t total = groups * rows;
    threads = fit_threads(threads, total * width);
    for_blocks(total, threads, threads, [&](int64_t, int64_t begin, int64_t end) {
        active->norm_relu(a, at<float>(y), begin, end);
    });
}

void norm_relu_grad(int64_t groups, int64_t rows, int64_t width, uintptr_t x, uintptr_t bias,
                    bool per_unit, uintptr_t gamma, uintptr_t beta, float eps, uint32_t keep,
                    float scale, uint64_t seed, uintptr_t stats, uintptr_t dy, uintptr_t dx,
                    uintptr_t dbias, uintptr_t dgamma, uintptr_t dbeta, int threads) {
    const NormRelu a = norm_relu_args(groups, rows, width, x, bias, per_unit, gamma, beta, eps,
                                      keep, scale, seed, stats);
    // a block lies within a group; its sums over rows are its own
    const int64_t per_group = std::max<int64_t>(1, std::min<int64_t>(rows, kBlocks / groups));
    const int64_t blocks = groups * per_group, bias_width = per_unit ? width : 1;
    std::vector<float> bias_sums(dbias ? blocks * bias_width : 0, 0.0f);
    std::vector<float> norm_sums(dgamma ? blocks * 2 * width : 0, 0.0f);
    threads = fit_threads(threads, groups * rows * width);
    for_blocks(blocks, blocks, threads, [&](int64_t block, int64_t, int64_t) {
        const int64_t group = block / per_group, part = block % per_group;
        NormReluGrad g{at<float>(dy), at<float>(dx), nullptr, nullptr, nullptr};
        if (dbias) g.dbias = &bias_sums[block * bias_width];
        if (dgamma) {
            g.dgamma = &norm_sums[block * 2 * width];
            g.dbeta = g.dgamma + width;
        }
        active->norm_relu_grad(a, g, group * rows + rows * part / per_group,
                               group * rows + rows * (part + 1) / per_group);
    });
    for (int64_t block = 0; block < blocks; ++block) {
        if (dbias) {
            active->add(at<float>(dbias) + block / per_group * bias_width,
                        &bias_sums[block * bias_width], bias_width);
        }
        if (dgamma) {
            active->add(at<float>(dgamma), &norm_sums[block * 2 * width], width);
            active->add(at<float>(dbeta), &norm_sums[block * 2 * width + width], width);
        }
    }
}

Spatial spatial_args(int64_t batch, int64_t rows, int64_t num, int64_t width, uintptr_t shared,
                     uintptr_t action, uintptr_t gamma, uintptr_t beta, uintptr_t weight,
                     float eps, uintptr_t stats) {
    if (batch < 0 || rows < 1 || num < 1 || width < 1) {
        throw py::value_error("kernels: impossible shape");
    }
    float* mean = at<float>(stats);
    return {batch, rows, num, width, at<float>(shared), at<float>(action), at<float>(gamma),
            at<float>(beta), at<float>(weight), eps, mean, mean + batch * rows * num};
}

void spatial(int64_t batch, int64_t rows, int64_t num, int64_t width, uintptr_t shared,
             uintptr_t action, uintptr_t gamma, uintptr_t beta, uintptr_t weight, float eps,
             uintptr_t stats, uintptr_t out, int threads) {
    const Spatial a = spatial_args(batch, rows, num, width, shared, action, gamma, beta, weight,
                                   eps, stats);
    threads = fit_threads(threads, batch * rows * num * width);
    for_blocks(batch, threads, threads, [&](int64_t, int64_t begin, int64_t end) {
        active->spatial(a, at<float>(out), begin, end);
    });
}

void spatial_grad(int64_t batch, int64_t rows, int64_t num, int64_t width, uintptr_t shared,
                  uintptr_t action, uintptr_t gamma, uintptr_t beta, uintptr_t weight, float eps,
                  uintptr_t stats, uintptr_t dz, uintptr_t dshared, uintptr_t daction,
                  uintptr_t dparams, int threads) {
    const Spatial a = spatial_args(batch, rows, num, width, shared, action, gamma, beta, weight,
                                   eps, stats);
    // dparams: [2 + rows, width] = dgamma, dbeta, dweight
    const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(kBlocks, batch));
    const int64_t params = (2 + rows) * width;
    std::vector<float> sums(dparams ? blocks * params : 0, 0.0f);
    threads = fit_threads(threads, batch * rows * num * width);
    for_blocks(batch, blocks, threads, [&](int64_t block, int64_t begin, int64_t end) {
        SpatialGrad g{at<float>(dz), at<float>(dshared), at<float>(daction), nullptr, nullptr,
                      nullptr};
        if (dparams) {
            g.dgamma = &sums[block * params];
            g.dbeta = g.dgamma + width;
            g.dweight = g.dbeta + width;
        }
        active->spatial_grad(a, g, begin, end);
    });
    for (int64_t block = 0; dparams && block < blocks; ++block) {
        active->add(at<float>(dparams), &sums[block * params], params);
    }
}

// in, out, w, transposed, bias, bias per unit, gamma, beta, eps, keep, scale, seed, hidden
using LayerArgs = std::tuple<int64_t, int64_t, uintptr_t, bool, uintptr_t, bool, uintptr_t,
                             uintptr_t, float, uint32_t, float, uint64_t, bool>;
using GradArgs = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

Mlp mlp_of(int64_t rows, uintptr_t x, std::vector<int64_t> members,
           const std::vector<LayerArgs>& layers) {
    if (rows < 0 || members.empty() || layers.empty()) {
        throw py::value_error("kernels: impossible shape");
    }
    Mlp a{rows, at<float>(x), std::move(members), {}};
    for (const auto& [in, out, w, transposed, bias, per_unit, gamma, beta, eps, keep, scale, seed,
                      hidden] : layers) {
        if (in < 1 || out < 1 || (!a.layers.empty() && a.layers.back().out != in)) {
            throw py::value_error("kernels: impossible shape");
        }
        a.layers.push_back({in, out, at<float>(w), transposed, at<float>(bias), per_unit,
                            at<float>(gamma), at<float>(beta), eps, keep, scale, seed, hidden});
    }
    return a;
}

int64_t py_mlp_saved_size(int64_t rows, std::vector<int64_t> members,
                          const std::vector<LayerArgs>& layers, bool hidden) {
    return mlp_saved_size(mlp_of(rows, 0, std::move(members), layers), hidden);
}

void py_mlp(int64_t rows, uintptr_t x, std::vector<int64_t> members,
            const std::vector<LayerArgs>& layers, uintptr_t out, uintptr_t saved, bool hidden,
            int threads) {
    mlp(mlp_of(rows, x, std::move(members), layers), at<float>(out), at<float>(saved), hidden,
        threads);
}

void py_mlp_grad(int64_t rows, uintptr_t x, std::vector<int64_t> members,
                 const std::vector<LayerArgs>& layers, uintptr_t saved, bool hidden,
                 uintptr_t dout, uintptr_t dx, const std::vector<GradArgs>& grads, int threads) {
    const Mlp a = mlp_of(rows, x, std::move(members), layers);
    std::vector<MlpLayerGrad> to;
    for (const auto& [dw, dbias, dgamma, dbeta] : grads) {
        to.push_back({at<float>(dw), at<float>(dbias), at<float>(dgamma), at<float>(dbeta)});
    }
    if (!to.empty() && (to.size() != layers.size() || !hidden)) {
        throw py::value_error("kernels: gradients of weights need every layer and its input");
    }
    mlp_grad(a, at<float>(saved), hidden, at<float>(dout), at<float>(dx), to, threads);
}

void py_mlp_grad_picked(int64_t rows, uintptr_t x, std::vector<int64_t> members,
                        const std::vector<LayerArgs>& layers, uintptr_t saved, bool hidden,
                        uintptr_t pick, uintptr_t dout, uintptr_t dx, int threads) {
    const int64_t num = static_cast<int64_t>(members.size());
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t p = at<int64_t>(pick)[r];
        if (p < 0 || p >= num) throw py::value_error("kernels: no such member");
    }
    mlp_grad_picked(mlp_of(rows, x, std::move(members), layers), at<float>(saved), hidden,
                    at<int64_t>(pick), at<float>(dout), at<float>(dx), threads);
}

// fn(tensor, begin, end) over all elements of tensors of so many, each thread on its own share.
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

using AdamArgs = std::tuple<int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

void py_adam(const std::vector<AdamArgs>& tensors, float step_size, float beta1, float beta2,
             float root, float eps, int threads) {
    std::vector<int64_t> sizes;
    for (const auto& t : tensors) sizes.push_back(std::get<0>(t));
    const Adam step{step_size, beta1, beta2, root, eps};
    over_elements(sizes, threads, [&](size_t i, int64_t begin, int64_t end) {
        const auto& [n, p, g, m, v] = tensors[i];
        active->adam(step, at<float>(p) + begin, at<float>(g) + begin, at<float>(m) + begin,
                     at<float>(v) + begin, end - begin);
    });
}

void py_lerp(const std::vector<std::tuple<int64_t, uintptr_t, uintptr_t>>& tensors, float weight,
             int threads) {
    std::vector<int64_t> sizes;
    for (const auto& t : tensors) sizes.push_back(std::get<0>(t));
    over_elements(sizes, threads, [&](size_t i, int64_t begin, int64_t end) {
        const auto& [n, to, from] = tensors[i];
        active->lerp(at<float>(to) + begin, at<float>(from) + begin, weight, end - begin);
    });
}

void py_gemm(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, bool ta, uintptr_t b,
             int64_t ldb, bool tb, uintptr_t c, int64_t ldc, bool add) {
    static thread_local std::vector<float> scratch(kGemmScratch);
    active->gemm({m, n, k, at<float>(a), lda, ta, at<float>(b), ldb, tb, at<float>(c), ldc, add},
                 scratch.data());
}

}  // namespace

PYBIND11_MODULE(kernels, m) {
    m.doc() = "Fused float32 kernels on raw addresses; see networks/fast/cpu.";
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    m.def("norm_relu", &norm_relu, unlocked);
    m.def("norm_relu_grad", &norm_relu_grad, unlocked);
    m.def("spatial", &spatial, unlocked);
    m.def("spatial_grad", &spatial_grad, unlocked);
    m.def("mlp_saved_size", &py_mlp_saved_size);
    m.def("mlp", &py_mlp, unlocked);
    m.def("mlp_grad", &py_mlp_grad, unlocked);
    m.def("mlp_grad_picked", &py_mlp_grad_picked, unlocked);
    m.def("adam", &py_adam, unlocked);
    m.def("lerp", &py_lerp, unlocked);
    m.def("gemm", &py_gemm, unlocked);
    m.def("isa", [] { return std::string(active->isa); });
    m.def("use", [](const std::string& isa) { active = &by_name(isa); });
}

}  // namespace kernels
