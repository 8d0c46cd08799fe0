// Python bindings of the replay core: names of the original program, arrays instead of tensors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>
#include <type_traits>

#include "arrays.h"
#include "../null.h"
#include "episode.h"
#include "replay.h"
#include "sampler.h"

namespace py = pybind11;

namespace rela {
namespace {

// Threads must be gone before the interpreter is.
std::set<Sampler*>& live_samplers() {
  static auto* samplers = new std::set<Sampler*>;  // guarded by the GIL
  return *samplers;
}

void terminate_all() {
  const auto samplers = live_samplers();
  const py::gil_scoped_release release;
  for (Sampler* s : samplers) s->terminate();
}

void after_fork_in_child() {
  for (Sampler* s : live_samplers()) s->after_fork_in_child();
}

class OwnedSampler {
 public:
  OwnedSampler(std::vector<std::shared_ptr<Replay>> replays, int prefetch, int num_threads,
               bool episodes)
      : sampler_(std::make_unique<Sampler>(std::move(replays), prefetch, num_threads, episodes)) {
    live_samplers().insert(sampler_.get());
  }
  OwnedSampler(OwnedSampler&&) = default;
  ~OwnedSampler() {
    if (!sampler_) return;
    live_samplers().erase(sampler_.get());
    const py::gil_scoped_release release;
    sampler_.reset();
  }
  Sampler* operator->() const { return sampler_.get(); }
  Sampler& operator*() const { return *sampler_; }

 private:
  std::unique_ptr<Sampler> sampler_;
};

Batch sample(Sampler& sampler, const std::vector<int64_t>& batches, const py::object& device,
             int horizon) {
  JobPtr job;
  {
    const py::gil_scoped_release release;
    job = sampler.sample(batches, horizon);
  }
  return to_batch(job, device);
}

void donate(Sampler& sampler, const py::array& buffer) {
  const auto a = py::array_t<uint8_t, py::array::c_style>::ensure(buffer);
  if (!a || a.ptr() != buffer.ptr() || a.ndim() != 1 || !a.writeable()) {
    throw py::value_error("donate: expected a writeable contiguous uint8 [bytes] array");
  }
  PyObject* held = buffer.ptr();
  Py_INCREF(held);
  std::shared_ptr<void> owner(held, [](void* p) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    Py_DECREF(static_cast<PyObject*>(p));
  });
  sampler.pool().donate(const_cast<uint8_t*>(a.data()), static_cast<size_t>(a.size()),
                        std::move(owner));
}

// A replay with the thread that samples ahead from it.
struct PyReplay {
  std::shared_ptr<Replay> core;
  OwnedSampler sampler;

  PyReplay(Options options, int prefetch, int num_threads, bool episodes)
      : core(std::make_shared<Replay>(std::move(options))),
        sampler({core}, prefetch, num_threads, episodes) {}

  // Runs f with this replay to itself and without the GIL.
  template <class F>
  auto locked(F&& f) const {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(core->call_mutex);
    return f(*core);
  }

  void add(const EpisodePtr& e) {
    locked([&](Replay& r) { r.add(e); });
  }

  Batch get_range(int64_t a, int64_t b, const py::object& device) {
    const JobPtr job = locked([&](Replay& r) {
      int64_t T = 0;
      std::vector<int32_t> lens;
      Rows rows = r.range_rows(a, b, T, lens);
      JobPtr j = sampler->collect(std::move(rows), {T, b - a});
      j->seq_lens = std::move(lens);
      return j;
    });
    return to_batch(job, device);
  }

  py::dict get(int64_t i) {
    if (i < 0) i += locked([](Replay& r) { return r.size(); });
    Replay::EpisodeRow e;
    std::vector<float> raw;
    const JobPtr job = locked([&](Replay& r) {
      e = r.episode(i);
      raw.resize(static_cast<size_t>(e.len));
      const int64_t first = e.step0 - r.episode(0).step0;
      r.read(Group::reward, 0, first, first + e.len, reinterpret_cast<uint8_t*>(raw.data()));
      return sampler->collect(r.episode_rows(i), {e.len});
    });
    const Batch b = to_batch(job, py::none());
    py::dict out;
    out["obs"] = b.obs;
    out["next_obs"] = b.next_obs;
    out["action"] = b.action;
    out["reward"] = b.reward;
    out["bootstrap"] = b.bootstrap;
    out["raw_reward"] = copy_array({"raw_reward", DType::f32, {}}, e.len,
                                   reinterpret_cast<const uint8_t*>(raw.data()));
    out["terminated"] = e.terminated;
    out["truncated"] = e.truncated;
    out["seq_len"] = e.len;
    return out;
  }

  // The next batch for a copy of the columns: rows of it, returns, bootstraps.
  py::dict draw(int64_t batch, int horizon) {
    const Drawn d = locked([&](Replay& r) { return r.draw_for_copy(batch, horizon); });
    py::dict out;
    auto put = [&](const char* name, DType dtype, const auto& values) {
      out[name] =
          copy_array({name, dtype, {}}, batch, reinterpret_cast<const uint8_t*>(values.data()));
    };
    put("step0", DType::i64, d.step0);
    put("obs0", DType::i64, d.obs0);
    put("t", DType::i64, d.t);
    put("last", DType::i64, d.last);
    put("len", DType::i64, d.len);
    put("reward", DType::f32, d.reward);
    put("bootstrap", DType::f32, d.bootstrap);
    if (horizon > 1) {
      out["rewards"] = copy_array({"rewards", DType::f32, {horizon}}, batch,
                                  reinterpret_cast<const uint8_t*>(d.rewards.data()));
    }
    return out;
  }

  // Rows that are held of observations and of actions: the first, and one past the last.
  std::pair<std::array<int64_t, 2>, std::array<int64_t, 2>> spans() const {
    return locked([](Replay& r) {
      return std::make_pair(r.live_span(Group::obs), r.live_span(Group::action));
    });
  }

  // What decides the next batch: the contents' version and the generator.
  std::pair<uint64_t, Rng::State> mark() const {
    return locked([](Replay& r) { return std::make_pair(r.version, r.rng.state()); });
  }

  void set_rng(const Rng::State& state) {
    locked([&](Replay& r) { r.rng.set_state(state); });
  }

  Replay::Snapshot snapshot() const {
    return locked([](Replay& r) { return r.snapshot(); });
  }

  py::array read(const std::string& group, const std::string& key, int64_t begin,
                 int64_t end) const {
    const Replay::Snapshot s = snapshot();
    const auto [g, column, field] = find(s, group, key);
    const int64_t live = g == Group::obs ? s.obs_rows : s.steps;
    if (end < 0) end = live;
    if (begin < 0 || begin > end || end > live) {
      throw py::index_error("read: rows " + std::to_string(begin) + " to " + std::to_string(end) +
                            " of " + std::to_string(live));
    }
    py::array out = new_array(field, end - begin);
    auto* dst = static_cast<uint8_t*>(out.mutable_data());
    locked([&, g = g, column = column](Replay& r) { r.read(g, column, begin, end, dst); });
    return out;
  }

  static std::tuple<Group, size_t, Field> find(const Replay::Snapshot& s, const std::string& group,
                                               const std::string& key) {
    if (group == "reward") {
      if (s.obs.empty()) throw py::key_error("the replay is empty");
      return {Group::reward, 0, Field{"reward", DType::f32, {}}};
    }
    if (group != "obs" && group != "action") {
      throw py::value_error("read: group must be 'obs', 'action' or 'reward', got '" + group + "'");
    }
    const Group g = group == "action" ? Group::action : Group::obs;
    const Fields& fields = g == Group::obs ? s.obs : s.action;
    for (size_t i = 0; i < fields.size(); ++i) {
      if (fields[i].name == key) return {g, i, fields[i]};
    }
    throw py::key_error("no " + group + " named '" + key + "' is stored");
  }

  // Everything but the rows themselves.
  py::dict meta_dict(const Replay::Snapshot& s) const {
    std::array<int64_t, 4> bits{};
    for (size_t i = 0; i < 4; ++i) bits[i] = static_cast<int64_t>(s.rng[i]);
    const Field i64{"", DType::i64, {}}, row{"", DType::i64, {4}};
    py::dict d;
    d["version"] = 1;
    d["n_step"] = core->options().nstep;
    d["gamma"] = s.gamma;
    d["bootstrap_truncated"] = core->options().bootstrap_truncated;
    d["num_add"] = s.num_add;
    d["rng"] = copy_array(i64, 4, reinterpret_cast<const uint8_t*>(bits.data()));
    d["episodes"] = copy_array(row, static_cast<int64_t>(s.table.size()),
                               reinterpret_cast<const uint8_t*>(s.table.data()));
    return d;
  }

  py::dict meta() const { return meta_dict(snapshot()); }

  py::dict state_dict() const {
    for (;;) {  // again if another thread changed the contents while the arrays were made
      Replay::Snapshot s = snapshot();
      std::vector<std::tuple<Group, size_t, uint8_t*>> targets;
      auto columns = [&](Group g, const Fields& fields, int64_t rows) {
        py::dict out;
        for (size_t i = 0; i < fields.size(); ++i) {
          py::array a = new_array(fields[i], rows);
          targets.emplace_back(g, i, static_cast<uint8_t*>(a.mutable_data()));
          out[py::str(fields[i].name)] = a;
        }
        return out;
      };
      py::dict d;
      d["obs"] = columns(Group::obs, s.obs, s.obs_rows);
      d["action"] = columns(Group::action, s.action, s.steps);
      d["reward"] = new_array({"", DType::f32, {}}, s.steps);
      if (s.steps) {
        targets.emplace_back(Group::reward, 0,
                             static_cast<uint8_t*>(py::array(d["reward"]).mutable_data()));
      }
      const bool unchanged = locked([&](Replay& r) {
        if (r.version != s.version) return false;
        s.rng = r.rng.state();
        for (const auto& [g, column, dst] : targets) r.read(g, column, 0, r.live_rows(g), dst);
        return true;
      });
      if (!unchanged) continue;
      d.attr("update")(meta_dict(s));
      return d;
    }
  }

  void load_state_dict(const py::dict& d) {
    for (const char* key : {"version", "n_step", "gamma", "bootstrap_truncated", "num_add", "rng",
                            "episodes", "obs", "action", "reward"}) {
      if (!d.contains(key))
        throw py::value_error(std::string("load_state_dict: '") + key + "' is missing");
    }
    auto same = [](const char* what, int64_t have, int64_t want) {
      if (have == want) return;
      throw py::value_error(std::string("load_state_dict: the saved replay has ") + what + " " +
                            std::to_string(have) + ", this one " + std::to_string(want));
    };
    same("version", d["version"].cast<int64_t>(), 1);
    same("n_step", d["n_step"].cast<int64_t>(), core->options().nstep);
    same("bootstrap_truncated", d["bootstrap_truncated"].cast<bool>(),
         core->options().bootstrap_truncated);
    using I64 = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
    const auto rng = I64(d["rng"]);
    const auto episodes = I64(d["episodes"]);
    if (rng.ndim() != 1 || rng.shape(0) != 4)
      throw py::value_error("load_state_dict: rng must be int64 [4]");
    if (episodes.ndim() != 2 || episodes.shape(1) != 4) {
      throw py::value_error("load_state_dict: episodes must be int64 [E, 4]");
    }
    Rng::State state{};
    for (py::ssize_t i = 0; i < 4; ++i)
      state[static_cast<size_t>(i)] = static_cast<uint64_t>(rng.at(i));
    std::vector<std::array<int64_t, 4>> table;
    for (py::ssize_t i = 0; i < episodes.shape(0); ++i) {
      table.push_back({episodes.at(i, 0), episodes.at(i, 1), episodes.at(i, 2), episodes.at(i, 3)});
    }
    const Borrowed obs = borrow_dict(d["obs"], "load_state_dict: obs");
    const Borrowed action = borrow_dict(d["action"], "load_state_dict: action");
    std::vector<py::array> owners;
    const View reward = borrow(d["reward"], "reward", owners);
    const auto gamma = d["gamma"].cast<float>();
    const auto num_add = d["num_add"].cast<int64_t>();
    locked([&](Replay& r) {
      r.restore(obs.views, action.views, reward, table, gamma, num_add, state);
    });
  }
};

struct JointSampler {
  OwnedSampler sampler;
};

// ------------------------------------------------------------------------------------- replays

using Stacks = std::map<std::string, int>;

struct SingleStep : PyReplay {
  using PyReplay::PyReplay;
};
struct MultiStep : PyReplay {
  using PyReplay::PyReplay;
};

template <class R>
std::unique_ptr<R> make_replay(int frame_stack, int n_step, int64_t capacity, uint64_t seed,
                               int prefetch, double extra, const Stacks& stacks,
                               const std::string& stack_order, bool bootstrap_truncated,
                               const std::vector<std::string>& save_only,
                               const std::string& storage, int num_threads) {
  if (stack_order != "oldest_first" && stack_order != "newest_first") {
    throw py::value_error("stack_order must be 'oldest_first' or 'newest_first', got '" +
                          stack_order + "'");
  }
  if (!(extra >= 0.0))
    throw py::value_error("extra must not be negative, got " + std::to_string(extra));
  if (storage.empty()) throw py::value_error("storage must be 'ram' or a directory, got ''");
  Options o;
  o.frame_stack = frame_stack;
  o.nstep = n_step;
  o.capacity = capacity;
  o.seed = seed;
  o.stacks = stacks;
  o.newest_first = stack_order == "newest_first";
  o.bootstrap_truncated = bootstrap_truncated;
  o.save_only = save_only;
  o.storage = storage == "ram" ? "" : storage;
  return std::make_unique<R>(std::move(o), prefetch, num_threads, std::is_same_v<R, MultiStep>);
}

template <class R>
void bind_replay(py::module_& m, const char* name) {
  py::class_<R, PyReplay>(m, name).def(
      py::init(&make_replay<R>), py::arg("frame_stack"), py::arg("n_step"), py::arg("capacity"),
      py::arg("seed"), py::arg("prefetch") = 0, py::arg("extra") = 0.1, py::kw_only(),
      py::arg("stacks") = Stacks{}, py::arg("stack_order") = "oldest_first",
      py::arg("bootstrap_truncated") = false, py::arg("save_only") = std::vector<std::string>{},
      py::arg("storage") = "ram", py::arg("num_threads") = 1);
}

template <class C>
void bind_replay_methods(C& c) {
  c.def("add", null::checked(&PyReplay::add), py::arg("episode").none(false))
      .def(
          "sample",
          [](PyReplay& r, int64_t n, const py::object& device, int horizon) {
            return sample(*r.sampler, {n}, device, horizon);
          },
          py::arg("batchsize"), py::arg("device") = "cpu", py::arg("horizon") = 1)
      .def("size", [](PyReplay& r) { return r.locked([](Replay& c) { return c.size(); }); })
      .def("num_add", [](PyReplay& r) { return r.locked([](Replay& c) { return c.num_add(); }); })
      .def_property_readonly(
          "num_transitions",
          [](PyReplay& r) { return r.locked([](Replay& c) { return c.num_transitions(); }); })
      .def_property_readonly(
          "nbytes", [](PyReplay& r) { return r.locked([](Replay& c) { return c.nbytes(); }); })
      .def("get", null::checked(&PyReplay::get), py::arg("idx"))
      .def("get_range", null::checked(&PyReplay::get_range), py::arg("start"), py::arg("end"),
           py::arg("device") = "cpu")
      .def("read", null::checked(&PyReplay::read), py::arg("group"), py::arg("key") = "",
           py::arg("begin") = 0, py::arg("end") = -1)
      .def_property_readonly("obs_fields",
                             [](PyReplay& r) { return fields_to_list(r.snapshot().obs); })
      .def_property_readonly("action_fields",
                             [](PyReplay& r) { return fields_to_list(r.snapshot().action); })
      .def("draw", null::checked(&PyReplay::draw), py::arg("batchsize"), py::arg("horizon") = 1)
      .def("spans", null::checked(&PyReplay::spans))
      .def("mark", null::checked(&PyReplay::mark))
      .def("set_rng", null::checked(&PyReplay::set_rng), py::arg("state"))
      .def("meta", null::checked(&PyReplay::meta))
      .def("state_dict", null::checked(&PyReplay::state_dict))
      .def("load_state_dict", null::checked(&PyReplay::load_state_dict), py::arg("state"))
      .def("clear", [](PyReplay& r) { r.locked([](Replay& c) { c.clear(); }); })
      .def(
          "donate", [](PyReplay& r, const py::array& a) { donate(*r.sampler, a); },
          py::arg("buffer"))
      .def("terminate", [](PyReplay& r) {
        const py::gil_scoped_release release;
        r.sampler->terminate();
      });
}

}  // namespace
}  // namespace rela

PYBIND11_MODULE(rela, m) {
  using namespace rela;
  m.doc() = "Replay core: episodes stored back to back, reproducible sampling, no torch needed.";
  bind_episode(m);

  py::class_<Batch>(m, "Batch")
      .def_readonly("obs", &Batch::obs)
      .def_readonly("next_obs", &Batch::next_obs)
      .def_readonly("action", &Batch::action)
      .def_readonly("reward", &Batch::reward)
      .def_readonly("bootstrap", &Batch::bootstrap)
      .def_readonly("rewards", &Batch::rewards)
      .def_readonly("valid", &Batch::valid)
      .def_readonly("seq_len", &Batch::seq_len)
      .def_readonly("flat", &Batch::flat)
      .def_readonly("layout", &Batch::layout);

  py::class_<PyReplay> base(m, "Replay");
  bind_replay_methods(base);
  bind_replay<SingleStep>(m, "SingleStepTransitionReplay");
  bind_replay<MultiStep>(m, "MultiStepTransitionReplay");

  py::class_<JointSampler>(m, "JointSampler")
      .def(py::init([](const std::vector<SingleStep*>& replays, int prefetch, int num_threads) {
             if (replays.empty()) throw py::value_error("JointSampler: needs at least one replay");
             std::vector<std::shared_ptr<Replay>> cores;
             for (size_t i = 0; i < replays.size(); ++i) {
               if (replays[i] == nullptr) {
                 throw py::type_error("JointSampler: replays[" + std::to_string(i) +
                                      "] is None, expected a SingleStepTransitionReplay");
               }
               cores.push_back(replays[i]->core);
             }
             return std::make_unique<JointSampler>(
                 JointSampler{{std::move(cores), prefetch, num_threads, false}});
           }),
           py::arg("replays"), py::kw_only(), py::arg("prefetch") = 0, py::arg("num_threads") = 1)
      .def(
          "sample",
          [](JointSampler& j, const std::vector<int64_t>& batches, const py::object& device,
             int horizon) { return sample(*j.sampler, batches, device, horizon); },
          py::arg("batchsizes"), py::arg("device") = "cpu", py::arg("horizon") = 1)
      .def(
          "donate", [](JointSampler& j, const py::array& a) { donate(*j.sampler, a); },
          py::arg("buffer"))
      .def("terminate", [](JointSampler& j) {
        const py::gil_scoped_release release;
        j.sampler->terminate();
      });

  m.def("_terminate_all", &terminate_all);
  m.def("_after_fork_in_child", &after_fork_in_child);
  py::module_::import("atexit").attr("register")(m.attr("_terminate_all"));
  py::module_::import("os").attr("register_at_fork")(py::arg("after_in_child") =
                                                         m.attr("_after_fork_in_child"));
}
