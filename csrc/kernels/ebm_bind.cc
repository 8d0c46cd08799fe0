// Python bindings of the energy networks: module common_utils.ebm_kernels.
//
// Tensors come in as addresses (torch's data_ptr); networks/ibc/fused.py is the only caller, checks
// shapes, types and contiguity, and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "ebm.h"
#include "../null.h"
#include "../workers.h"

namespace py = pybind11;
using null::required;

namespace ebm {
namespace {

// The number of groups of observations with sums of their own: more threads than this gain nothing.
constexpr int64_t kGroups = 8;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The kernel hands out tile registers on request only.
bool tiles_allowed() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

#if defined(__x86_64__)
// Newer than some compilers' __builtin_cpu_supports.
bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1U << 5));
}
bool has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kNeeded = (1U << 22) | (1U << 24);  // AMX-BF16, AMX-TILE
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kNeeded) == kNeeded;
}
#endif

// What this CPU can run, best first.
const std::vector<const Build*>& builds() {
  static const std::vector<const Build*> found = [] {
    std::vector<const Build*> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512cd");
    const bool v4_bf16 = v4 && has_avx512_bf16();
    if (v4_bf16 && has_amx_bf16() && tiles_allowed()) {
      list.push_back(&amx::bf16);
      list.push_back(&amx::bf16x3);
    }
    if (v4_bf16) list.push_back(&v4_bf16::bf16);
    if (v4) list.insert(list.end(), {&v4::f32, &v4::rounded});
    if (v3) list.insert(list.end(), {&v3::f32, &v3::rounded});
#endif
    list.insert(list.end(), {&base::f32, &base::rounded});
    return list;
  }();
  return found;
}

const Build& by_name(const std::string& name) {
  for (const Build* b : builds()) {
    if (name == b->name) return *b;
  }
  throw py::value_error("ebm_kernels: this CPU has no build '" + name + "'");
}

// One thread's memory, kept between calls.
char* scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();
    size = 0;
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    memory.reset(std::aligned_alloc(4096, rounded));
    if (!memory) throw std::bad_alloc();
    size = rounded;
  }
  return static_cast<char*>(memory.get());
}

template <typename Fn>
void parallel(int64_t jobs, int threads, const Fn& fn) {
  auto run = [&](int64_t first, int64_t step) {
    for (int64_t i = first; i < jobs; i += step) fn(i);
  };
  const int64_t size = std::max<int64_t>(1, std::min<int64_t>(threads, jobs));
  workers::pool().run(static_cast<int>(size), [&](int rank) { run(rank, size); });
}

struct Plan {
  std::vector<Block> blocks;
  std::vector<int64_t> group_end;  // in blocks
  int64_t padded_rows = 0;

  Plan(const Build& build, int64_t batch, int64_t num, bool saved) {
    const int64_t most = saved ? build.saved_block : build.block;
    const int64_t groups = std::max<int64_t>(1, std::min(kGroups, batch));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t end = batch * (g + 1) / groups * num;
      for (int64_t r = batch * g / groups * num; r < end; r += most) {
        const int64_t stop = std::min(end, r + most);
        blocks.push_back({r, stop, padded_rows});
        padded_rows += (stop - r + build.align - 1) / build.align * build.align;
      }
      group_end.push_back(static_cast<int64_t>(blocks.size()));
    }
  }
};

class Network {
 public:
  Network(const std::string& build, int kind, int64_t width, int64_t action, int64_t layers,
          uintptr_t forward, uintptr_t backward, uintptr_t bias, uintptr_t w_a, uintptr_t head,
          uintptr_t head_stream, float constant)
      : build_(by_name(build)),
        net_{static_cast<Kind>(kind),
             width,
             action,
             layers,
             required<void>("forward", forward),
             required<void>("backward", backward),
             required<float>("bias", bias),
             required<float>("w_a", w_a),
             required<float>("head", head),
             at<float>(head_stream),
             constant} {
    if (kind < 0 || kind > 2 || width < 32 || width % 32 || action < 1 || layers < 1 ||
        (head_stream != 0) != (net_.kind == Kind::kPreActivation)) {
      throw py::value_error("ebm_kernels: impossible network");
    }
  }

  int64_t saved_bytes(int64_t batch, int64_t num) const {
    return Plan(build_, batch, num, true).padded_rows * build_.saved_bytes(net_);
  }

  void forward(int64_t batch, int64_t num, uintptr_t first, uintptr_t actions, uintptr_t f,
               uintptr_t grad, uintptr_t saved, uintptr_t stream, int threads) const {
    const bool any = batch * num > 0;
    const Rows rows{batch, num, required<float>("first", first, any),
                    required<float>("actions", actions, any)};
    const Values out{required<float>("f", f, any), at<float>(grad), at<char>(saved),
                     at<float>(stream)};
    const Plan plan(build_, batch, num, saved != 0);
    const int64_t bytes = build_.scratch_bytes(net_);
    parallel(static_cast<int64_t>(plan.blocks.size()), threads,
             [&](int64_t i) { build_.forward(net_, rows, out, plan.blocks[i], scratch(bytes)); });
  }

  // Everything is written, not added to.
  void backward(int64_t batch, int64_t num, uintptr_t first, uintptr_t actions, uintptr_t scale,
                uintptr_t saved, uintptr_t stream, uintptr_t dfirst, uintptr_t layers,
                uintptr_t bias, uintptr_t w_a, uintptr_t head, uintptr_t head_stream,
                int threads) const {
    const bool any = batch * num > 0, pre = net_.kind == Kind::kPreActivation;
    const Rows rows{batch, num, required<float>("first", first, any),
                    required<float>("actions", actions, any)};
    float* to_first = required<float>("dfirst", dfirst, batch > 0);
    float* to_layers = required<float>("layers", layers);
    float* to_bias = required<float>("bias", bias);
    float* to_w_a = required<float>("w_a", w_a);
    float* to_head = required<float>("head", head);
    float* to_head_stream = required<float>("head_stream", head_stream, pre);
    const float* scales = required<float>("scale", scale, any);
    const char* kept = required<char>("saved", saved, any && build_.saved_bytes(net_) > 0);
    const float* streams = required<float>("stream", stream, any && pre && kept != nullptr);
    const Plan plan(build_, batch, num, true);
    const int64_t w = net_.width, bytes = build_.scratch_bytes(net_);
    const int64_t lanes = build_.lanes;
    const int64_t sizes[3] = {net_.layers * w * w, net_.layers * w * lanes,
                              net_.action * w * lanes};
    const int64_t total = sizes[0] + sizes[1] + sizes[2] + 2 * w;
    const int64_t groups = static_cast<int64_t>(plan.group_end.size());
    std::vector<float> sums(groups * total, 0.0f);
    std::fill_n(to_first, batch * w, 0.0f);
    parallel(groups, threads, [&](int64_t g) {
      float* p = &sums[g * total];
      Grads grads{};
      grads.scale = scales;
      grads.saved = kept;
      grads.stream = streams;
      grads.first = to_first;
      grads.layers = p;
      grads.bias = p + sizes[0];
      grads.w_a = grads.bias + sizes[1];
      grads.head = grads.w_a + sizes[2];
      grads.head_stream = grads.head + w;
      for (int64_t i = g == 0 ? 0 : plan.group_end[g - 1]; i < plan.group_end[g]; ++i) {
        build_.backward(net_, rows, grads, plan.blocks[i], scratch(bytes));
      }
    });
    for (int64_t g = 1; g < groups; ++g) {
      for (int64_t i = 0; i < total; ++i) sums[i] += sums[g * total + i];
    }
    const float* p = sums.data();
    std::copy_n(p, sizes[0], to_layers);
    p = fold(p + sizes[0], sizes[1], lanes, to_bias);
    p = fold(p, sizes[2], lanes, to_w_a);
    std::copy_n(p, w, to_head);
    if (to_head_stream != nullptr) std::copy_n(p + w, w, to_head_stream);
  }

 private:
  static const float* fold(const float* from, int64_t size, int64_t lanes, float* to) {
    for (int64_t i = 0; i < size / lanes; ++i) {
      float sum = 0.0f;
      for (int64_t j = 0; j < lanes; ++j) sum += from[i * lanes + j];
      to[i] = sum;
    }
    return from + size;
  }

  const Build& build_;
  ebm::Net net_;
};

}  // namespace

PYBIND11_MODULE(ebm_kernels, m) {
  m.doc() = "Energy networks on raw addresses; see networks/ibc/fused.py.";
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<Network>(m, "Network")
      .def(py::init<const std::string&, int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t,
                    uintptr_t, uintptr_t, uintptr_t, uintptr_t, float>(),
           py::kw_only(), py::arg("build"), py::arg("kind"), py::arg("width"), py::arg("action"),
           py::arg("layers"), py::arg("forward"), py::arg("backward"), py::arg("bias"),
           py::arg("w_a"), py::arg("head"), py::arg("head_stream"), py::arg("constant"))
      .def("saved_bytes", null::checked(&Network::saved_bytes))
      .def("forward", null::checked(&Network::forward), unlocked, py::kw_only(), py::arg("batch"),
           py::arg("num"), py::arg("first"), py::arg("actions"), py::arg("f"), py::arg("grad"),
           py::arg("saved"), py::arg("stream"), py::arg("threads"))
      .def("backward", null::checked(&Network::backward), unlocked, py::kw_only(), py::arg("batch"),
           py::arg("num"), py::arg("first"), py::arg("actions"), py::arg("scale"), py::arg("saved"),
           py::arg("stream"), py::arg("dfirst"), py::arg("layers"), py::arg("bias"), py::arg("w_a"),
           py::arg("head"), py::arg("head_stream"), py::arg("threads"));
  m.def(
      "builds",
      [] {
        std::vector<std::pair<std::string, std::string>> names;
        for (const Build* b : builds()) names.emplace_back(b->name, b->precision);
        return names;
      },
      "(name, precision) of what this CPU runs, best first");
}

}  // namespace ebm
