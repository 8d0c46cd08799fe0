// Null pointers end at the border to Python, as TypeErrors, in every module.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

namespace null {

// A method that Python may also call on the class, with any first argument. pybind11 gives a member
// function a pointer, null for None, but refuses to make a reference of None.
template <class C, class R, class... Args>
auto checked(R (C::*method)(Args...)) {
  return
      [method](C& self, Args... args) -> R { return (self.*method)(std::forward<Args>(args)...); };
}
template <class C, class R, class... Args>
auto checked(R (C::*method)(Args...) const) {
  return [method](const C& self, Args... args) -> R {
    return (self.*method)(std::forward<Args>(args)...);
  };
}

// The array at an address that came in as a number (torch's data_ptr, 0 for none). Arrays without
// elements have no address either: `used` says whether anything of it is read or written.
template <typename T>
T* required(const char* name, uintptr_t address, bool used = true) {
  if (used && address == 0) {
    throw pybind11::type_error(std::string("'") + name + "' is null, expected an address");
  }
  return reinterpret_cast<T*>(address);
}

}  // namespace null
