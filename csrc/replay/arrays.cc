#include "arrays.h"

#include <algorithm>

namespace rela {
namespace {

DType dtype_of(const py::array& a, const std::string& name) {
  const py::dtype d = a.dtype();
  const char kind = d.kind();
  const auto size = d.itemsize();
  const char order = d.byteorder();
  if (order != '>') {
    if (kind == 'u' && size == 1) return DType::u8;
    if (kind == 'i' && size == 4) return DType::i32;
    if (kind == 'i' && size == 8) return DType::i64;
    if (kind == 'f' && size == 4) return DType::f32;
    if (kind == 'f' && size == 8) return DType::f64;
  }
  throw py::type_error("'" + name + "' has dtype " +
                       py::str(static_cast<py::object>(d)).cast<std::string>() +
                       "; the replay stores uint8, int32, int64, float32 and float64");
}

py::dtype numpy_dtype(DType d) { return py::dtype(std::string(dtype_name(d))); }

Shape shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

py::array view_array(const OutField& f, const Shape& lead, uint8_t* base, const py::object& owner) {
  std::vector<py::ssize_t> shape(lead.begin(), lead.end());
  shape.insert(shape.end(), f.field.shape.begin(), f.field.shape.end());
  return {numpy_dtype(f.field.dtype), shape, base + f.offset, owner};
}

py::object torch_from_numpy() {
  static PyObject* f = py::object(py::module_::import("torch").attr("from_numpy")).release().ptr();
  return py::reinterpret_borrow<py::object>(f);
}

const char* group_name(Group g) {
  static const char* const names[] = {"obs",       "next_obs", "action", "reward",
                                      "bootstrap", "rewards",  "valid"};
  return names[static_cast<int>(g)];
}

}  // namespace

View borrow(const py::handle& value, const std::string& name, std::vector<py::array>& owners) {
  py::array a = py::array::ensure(value, py::array::c_style);
  if (!a) {
    PyErr_Clear();
    throw py::type_error("'" + name +
                         "' is not an array: " + py::repr(py::type::of(value)).cast<std::string>() +
                         " (tensors must be on the CPU and detached)");
  }
  View v;
  v.field = {name, dtype_of(a, name), shape_of(a)};
  v.data = static_cast<const uint8_t*>(a.data());
  owners.push_back(std::move(a));
  return v;
}

Borrowed borrow_dict(const py::handle& dict, const std::string& what) {
  if (!py::isinstance<py::dict>(dict)) {
    throw py::type_error(what + " must be a dict of arrays, got " +
                         py::repr(py::type::of(dict)).cast<std::string>());
  }
  Borrowed out;
  for (const auto& item : py::reinterpret_borrow<py::dict>(dict)) {
    if (!py::isinstance<py::str>(item.first)) throw py::type_error(what + ": keys must be strings");
    out.views.push_back(borrow(item.second, item.first.cast<std::string>(), out.owners));
  }
  std::sort(out.views.begin(), out.views.end(),
            [](const View& a, const View& b) { return a.field.name < b.field.name; });
  return out;
}

py::array new_array(const Field& field, int64_t rows) {
  std::vector<py::ssize_t> shape{rows};
  shape.insert(shape.end(), field.shape.begin(), field.shape.end());
  return {numpy_dtype(field.dtype), shape};
}

py::array copy_array(const Field& field, int64_t rows, const uint8_t* data) {
  py::array a = new_array(field, rows);
  const size_t n = field.bytes() * static_cast<size_t>(rows);
  if (n) std::copy(data, data + n, static_cast<uint8_t*>(a.mutable_data()));
  return a;
}

py::list fields_to_list(const Fields& fields) {
  py::list out;
  for (const Field& f : fields) {
    py::tuple shape(f.shape.size());
    for (size_t i = 0; i < f.shape.size(); ++i) shape[i] = f.shape[i];
    out.append(py::make_tuple(f.name, dtype_name(f.dtype), shape));
  }
  return out;
}

Batch to_batch(const JobPtr& job, const py::object& device) {
  using Hold = std::shared_ptr<Block>;
  const py::capsule owner(new Hold(job->block), [](void* p) { delete static_cast<Hold*>(p); });
  uint8_t* base = job->block->data;
  const bool torch = !device.is_none();
  const bool move = torch && py::str(device).cast<std::string>() != "cpu";

  Batch b;
  b.rewards = b.valid = py::none();
  auto convert = [&](py::object a) {
    if (torch) a = torch_from_numpy()(a);
    if (move) a = a.attr("to")(device);
    return a;
  };
  for (const OutField& f : job->layout.fields) {
    py::array a = view_array(f, job->lead, base, owner);
    if (!torch) {  // describes `flat` for those who copy it as a whole
      b.layout.append(py::make_tuple(group_name(f.group), f.field.name, dtype_name(f.field.dtype),
                                     a.attr("shape"), f.offset));
    }
    py::object out = convert(std::move(a));
    const py::str key(f.field.name);
    switch (f.group) {
      case Group::obs:
        b.obs[key] = out;
        break;
      case Group::next_obs:
        b.next_obs[key] = out;
        break;
      case Group::action:
        b.action[key] = out;
        break;
      case Group::reward:
        b.reward = out;
        break;
      case Group::bootstrap:
        b.bootstrap = out;
        break;
      case Group::rewards:
        b.rewards = out;
        break;
      case Group::valid:
        b.valid = out;
        break;
    }
  }
  b.flat =
      py::array(py::dtype("uint8"), {static_cast<py::ssize_t>(job->layout.bytes)}, base, owner);
  if (job->seq_lens.empty()) {
    b.seq_len = py::none();
  } else {
    const Field f{"seq_len", DType::i32, {}};
    b.seq_len = convert(copy_array(f, static_cast<int64_t>(job->seq_lens.size()),
                                   reinterpret_cast<const uint8_t*>(job->seq_lens.data())));
  }
  return b;
}

}  // namespace rela
