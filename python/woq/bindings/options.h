// SPDX-License-Identifier: Apache-2.0
// The options of the core's quantizers as Python sees them. For each options struct there is one
// list of its fields by name: functions take them as keyword arguments, and `option_defaults` tells
// what they are when nobody says, so that Python has no defaults of its own.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "woq/core/check.h"

namespace woq::python {

namespace py = pybind11;

// How a value of type V crosses the border. Specialised for enumerations, which cross by name.
template <class V>
struct OptionValue {
  static py::object show(const V& value) { return py::cast(value); }
  static V read(py::handle value) { return value.cast<V>(); }
};

template <class T>
struct OptionField {
  const char* name;
  void (*set)(T* options, py::handle value);
  py::object (*get)(const T& options);
};

template <auto Member>
struct MemberOf;
template <class T, class V, V T::* Member>
struct MemberOf<Member> {
  using Owner = T;
  static void set(T* options, py::handle value) { options->*Member = OptionValue<V>::read(value); }
  static py::object get(const T& options) { return OptionValue<V>::show(options.*Member); }
};

template <auto Member>
OptionField<typename MemberOf<Member>::Owner> option(const char* name) {
  return {name, &MemberOf<Member>::set, &MemberOf<Member>::get};
}

template <class T>
using OptionFields = std::vector<OptionField<T>>;

// Sets fields of `options` by name. Throws InvalidArgument for names and values that do not fit.
template <class T>
void read_options(const OptionFields<T>& fields, const py::kwargs& given, T* options) {
  for (const auto& [key, value] : given) {
    const auto name = py::cast<std::string>(key);
    const OptionField<T>* found = nullptr;
    std::string known;
    for (const OptionField<T>& field : fields) {
      if (name == field.name) found = &field;
      known += concat(known.empty() ? "" : ", ", field.name);
    }
    if (found == nullptr) fail("unknown option '", name, "'; known: ", known);
    try {
      found->set(options, value);
    } catch (const py::cast_error&) {
      fail("option '", name, "' cannot be ", py::cast<std::string>(py::repr(value)));
    }
  }
}

template <class T>
py::dict default_options(const OptionFields<T>& fields) {
  const T defaults;
  py::dict result;
  for (const OptionField<T>& field : fields) result[field.name] = field.get(defaults);
  return result;
}

}  // namespace woq::python
