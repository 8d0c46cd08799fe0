// Python face of the fused kernels: module common_utils.kernels.
//
// Tensors come in as addresses (torch's data_ptr), so that neither libtorch nor a conversion is
// needed; networks/fast.py is the only caller and checks shapes, types and contiguity.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

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

const Table* active = &choose();

const Table& by_name(const std::string& name) {
#if defined(__x86_64__)
    if (name == "v4" && std::string(choose().isa) == "v4") return v4::table;
    if (name == "v3" && std::string(choose().isa) != "base") return v3::table;
#endif
    if (name == "base") return base::table;
    throw py::value_error("kernels.use: '" + name + "' is not an instruction set of this CPU");
}

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
    const int64_t workers = std::min<int64_t>(threads, blocks);
    if (workers <= 1) return run(0, 1);
    std::vector<std::thread> pool;
    for (int64_t t = 1; t < workers; ++t) pool.emplace_back(run, t, workers);
    run(0, workers);
    for (auto& t : pool) t.join();
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

}  // namespace

PYBIND11_MODULE(kernels, m) {
    m.doc() = "Fused float32 kernels on raw addresses; see networks/fast.py.";
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    m.def("norm_relu", &norm_relu, unlocked);
    m.def("norm_relu_grad", &norm_relu_grad, unlocked);
    m.def("spatial", &spatial, unlocked);
    m.def("spatial_grad", &spatial_grad, unlocked);
    m.def("isa", [] { return std::string(active->isa); });
    m.def("use", [](const std::string& isa) { active = &by_name(isa); });
}

}  // namespace kernels
