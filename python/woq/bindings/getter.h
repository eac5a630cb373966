// SPDX-License-Identifier: Apache-2.0
// Methods without arguments as Python properties.
#pragma once

namespace woq::python {

// pybind11 would call a plain pointer to a method on a null pointer where Python hands over None,
// as `type(x).rows.fget(None)` does; by reference None is a TypeError.
template <class Class, class Result>
auto getter(Result (Class::*method)() const) {
  return [method](const Class& self) -> Result { return (self.*method)(); };
}

}  // namespace woq::python
