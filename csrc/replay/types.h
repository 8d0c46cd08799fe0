// Plain types shared by the whole replay core: dtypes, field descriptions, borrowed array views.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace rela {

enum class DType : uint8_t { u8, i32, i64, f32, f64 };

inline size_t item_size(DType d) {
  switch (d) {
    case DType::u8:
      return 1;
    case DType::i32:
    case DType::f32:
      return 4;
    default:
      return 8;
  }
}

inline const char* dtype_name(DType d) {
  switch (d) {
    case DType::u8:
      return "uint8";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::f32:
      return "float32";
    default:
      return "float64";
  }
}

using Shape = std::vector<int64_t>;

inline std::string shape_text(const Shape& s) {
  std::string out = "[";
  for (size_t i = 0; i < s.size(); ++i) out += (i ? ", " : "") + std::to_string(s[i]);
  return out + "]";
}

inline size_t num_items(const Shape& s) {
  size_t n = 1;
  for (int64_t d : s) n *= static_cast<size_t>(d);
  return n;
}

// One named array of a step: a single frame, never a stack.
struct Field {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;

  size_t bytes() const { return num_items(shape) * item_size(dtype); }
  std::string text() const { return std::string(dtype_name(dtype)) + shape_text(shape); }
  bool operator==(const Field& o) const {
    return name == o.name && dtype == o.dtype && shape == o.shape;
  }
};

using Fields = std::vector<Field>;

// A C-contiguous array that its owner keeps alive.
struct View {
  Field field;
  const uint8_t* data = nullptr;
};

// Sorted by name, so that dictionaries in any order mean the same thing.
using Views = std::vector<View>;

// Throws std::invalid_argument unless `got` has exactly the fields `want`; `what` names the
// dictionary.
void check_fields(const Fields& want, const Fields& got, const std::string& what);

inline Fields fields_of(const Views& views) {
  Fields out;
  out.reserve(views.size());
  for (const View& v : views) out.push_back(v.field);
  return out;
}

}  // namespace rela
