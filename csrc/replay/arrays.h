// numpy on one side, the core's views and jobs on the other.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "episode.h"
#include "replay.h"
#include "sampler.h"
#include "types.h"

namespace rela {

namespace py = pybind11;

// Keeps the Python arrays alive that the views point into.
struct Borrowed {
  Views views;  // sorted by name
  std::vector<py::array> owners;
};

View borrow(const py::handle& value, const std::string& name, std::vector<py::array>& owners);
Borrowed borrow_dict(const py::handle& dict, const std::string& what);

py::array new_array(const Field& field, int64_t rows);  // uninitialised [rows, ...]
py::array copy_array(const Field& field, int64_t rows, const uint8_t* data);
py::list fields_to_list(const Fields& fields);  // [name, dtype, shape] each

// A batch as Python sees it. Arrays share the memory of `flat`, which is recycled when all are
// gone.
struct Batch {
  py::dict obs, next_obs, action;
  py::object reward, bootstrap;
  py::object rewards, valid;  // of windows: float32 [B, horizon], else None
  py::object seq_len;         // int32 [N] for whole episodes, else None
  py::array flat;             // uint8: the whole block
  py::list layout;            // (group, key, dtype, shape, offset) per array, offsets into flat
};

// device None: numpy arrays; otherwise torch tensors there (for "cpu" without a copy).
Batch to_batch(const JobPtr& job, const py::object& device);

void bind_episode(py::module_& m);  // bind_episode.cc

}  // namespace rela
