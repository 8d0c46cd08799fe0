// Episode and EpisodeData for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "arrays.h"
#include "../null.h"
#include "episode.h"

namespace rela {
namespace {

py::dict columns_to_dict(const Fields& fields, const std::vector<Bytes>& columns) {
  py::dict out;
  for (size_t i = 0; i < columns.size(); ++i) {
    const size_t row = fields[i].bytes();
    const auto rows = static_cast<int64_t>(row ? columns[i].size() / row : 0);
    out[py::str(fields[i].name)] = copy_array(fields[i], rows, columns[i].data());
  }
  return out;
}

py::dict episode_to_dict(const EpisodeData& e) {
  py::dict d;
  d["obs"] = columns_to_dict(e.obs_fields, e.obs);
  d["action"] = columns_to_dict(e.action_fields, e.action);
  d["reward"] = copy_array({"reward", DType::f32, {}}, static_cast<int64_t>(e.reward.size()),
                           reinterpret_cast<const uint8_t*>(e.reward.data()));
  d["len"] = e.len;
  d["terminated"] = e.terminated;
  d["truncated"] = e.truncated;
  d["has_final"] = e.has_final;
  return d;
}

void take_columns(const py::handle& dict, Fields& fields, std::vector<Bytes>& columns) {
  const Borrowed b = borrow_dict(dict, "Episode.load_state_dict");
  for (const View& v : b.views) {
    Field f = v.field;
    if (f.shape.empty())
      throw py::value_error("Episode.load_state_dict: '" + f.name + "' has no rows axis");
    columns.emplace_back(v.data, v.data + f.bytes());
    f.shape.erase(f.shape.begin());
    fields.push_back(f);
  }
}

py::dict episode_state(const Episode& e) {
  py::dict d = episode_to_dict(e.data());
  d["phase"] = static_cast<int>(e.phase());
  return d;
}

void load_episode_state(Episode& e, const py::dict& d) {
  for (const char* key :
       {"obs", "action", "reward", "len", "terminated", "truncated", "has_final", "phase"}) {
    if (!d.contains(key))
      throw py::value_error(std::string("Episode.load_state_dict: '") + key + "' is missing");
  }
  EpisodeData data;
  take_columns(d["obs"], data.obs_fields, data.obs);
  take_columns(d["action"], data.action_fields, data.action);
  const auto reward = py::array_t<float, py::array::c_style | py::array::forcecast>(d["reward"]);
  data.reward.assign(reward.data(), reward.data() + reward.size());
  data.len = d["len"].cast<int64_t>();
  data.terminated = d["terminated"].cast<bool>();
  data.truncated = d["truncated"].cast<bool>();
  data.has_final = d["has_final"].cast<bool>();
  e.restore(std::move(data), static_cast<Episode::Phase>(d["phase"].cast<int>()));
}

EpisodePtr episode_from_arrays(const py::dict& obs, const py::dict& action,
                               const py::object& reward, bool terminated, bool truncated,
                               bool final_obs, int64_t nstep, double gamma) {
  const Borrowed o = borrow_dict(obs, "obs");
  const Borrowed a = borrow_dict(action, "action");
  std::vector<py::array> owners;
  const View r = borrow(reward, "reward", owners);
  return make_episode(o.views, a.views, r, terminated, truncated, final_obs, nstep, gamma);
}

}  // namespace

void bind_episode(py::module_& m) {
  py::class_<EpisodeData, std::shared_ptr<EpisodeData>>(m, "EpisodeData",
                                                        "A finished episode, immutable.")
      .def_readonly("seq_len", &EpisodeData::len)
      .def_readonly("terminated", &EpisodeData::terminated)
      .def_readonly("truncated", &EpisodeData::truncated)
      .def_property_readonly("reward",
                             [](const EpisodeData& e) {  // n-step sums, as the original's
                               const auto weights = return_weights(e.gamma, e.nstep);
                               py::array_t<float> out(e.len);
                               for (int64_t t = 0; t < e.len; ++t) {
                                 out.mutable_at(t) =
                                     nstep_return(e.reward.data(), t, e.len, weights);
                               }
                               return out;
                             })
      .def_property_readonly("bootstrap",
                             [](const EpisodeData& e) {
                               const float full = bootstrap_weights(e.gamma, e.nstep).back();
                               py::array_t<float> out(e.len);
                               for (int64_t t = 0; t < e.len; ++t) {
                                 out.mutable_at(t) = t < e.len - e.nstep ? full : 0.0F;
                               }
                               return out;
                             })
      .def("to_dict", &episode_to_dict,
           "Copies: obs and action frames [T, ...], raw rewards, flags.")
      .def("__len__", [](const EpisodeData& e) { return e.len; });

  m.def("episode_from_arrays", &episode_from_arrays, py::arg("obs"), py::arg("action"),
        py::arg("reward"), py::kw_only(), py::arg("terminated"), py::arg("truncated"),
        py::arg("final_obs") = false, py::arg("nstep"), py::arg("gamma"));

  py::class_<Episode>(m, "Episode")
      .def(py::init<int64_t, int64_t, double>(), py::arg("nstep"), py::arg("max_len"),
           py::arg("gamma"))
      .def(
          "init",
          [](Episode& e, const py::dict& hidden) {
            if (!hidden.empty())
              throw py::value_error("Episode.init: recurrent state is not stored, give {}");
            e.reset();
          },
          py::arg("hidden") = py::dict())
      .def("reset", null::checked(&Episode::reset))
      .def(
          "push_obs",
          [](Episode& e, const py::object& o) {
            e.push_obs(borrow_dict(o, "Episode.push_obs: obs").views);
          },
          py::arg("obs"))
      .def(
          "push_action",
          [](Episode& e, const py::object& a) {
            e.push_action(borrow_dict(a, "Episode.push_action: action").views);
          },
          py::arg("action"))
      .def("push_reward", null::checked(&Episode::push_reward), py::arg("reward"))
      .def(
          "push_terminal",
          [](Episode& e, double terminal, bool truncated) {
            if (terminal != 0.0 && terminal != 1.0) {
              throw py::value_error("Episode.push_terminal: terminal must be 0 or 1, got " +
                                    std::to_string(terminal));
            }
            e.push_terminal(terminal == 1.0, truncated);
          },
          py::arg("terminal"), py::arg("truncated") = false)
      .def(
          "push_final_obs",
          [](Episode& e, const py::object& o) {
            e.push_final_obs(borrow_dict(o, "Episode.push_final_obs: obs").views);
          },
          py::arg("obs"))
      .def("pop_transition",
           [](Episode& e) { return std::const_pointer_cast<EpisodeData>(e.pop_transition()); })
      .def("len", null::checked(&Episode::len))
      .def("__len__", null::checked(&Episode::len))
      .def("get_rewards", [](const Episode& e) { return e.rewards(); })
      .def(
          "reset_rewards",
          [](Episode& e, const std::optional<std::vector<float>>& r) {
            e.reset_rewards(r ? *r : std::vector<float>(e.rewards().size(), 0.0F));
          },
          py::arg("rewards") = py::none())
      .def("state_dict", &episode_state)
      .def("load_state_dict", &load_episode_state, py::arg("state"))
      .def_property_readonly("nstep", null::checked(&Episode::nstep))
      .def_property_readonly("max_len", null::checked(&Episode::max_len))
      .def_property_readonly("gamma", null::checked(&Episode::gamma));
}

}  // namespace rela
