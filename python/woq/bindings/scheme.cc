// SPDX-License-Identifier: Apache-2.0
#include "scheme.h"

#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "getter.h"
#include "woq/woq.h"

namespace woq::python {

namespace {

// How users' configs say that the scales are "double".
constexpr const char* kDoubleQuant = "double_quant";

QuantScheme make_scheme(const std::string& dtype, int64_t group_size, const std::string& zeros,
                        const std::string& scales) {
  const QuantScheme scheme{parse_weight_dtype(dtype), group_size, parse_zero_kind(zeros),
                           parse_scales(scales)};
  validate(scheme);
  return scheme;
}

// `scheme` with the fields that are given.
QuantScheme replaced(QuantScheme scheme, const std::optional<std::string>& dtype,
                     const std::optional<int64_t>& group_size,
                     const std::optional<std::string>& zeros,
                     const std::optional<std::string>& scales) {
  if (dtype) scheme.dtype = parse_weight_dtype(*dtype);
  if (group_size) scheme.group_size = *group_size;
  if (zeros) scheme.zeros = parse_zero_kind(*zeros);
  if (scales) scheme.scales = parse_scales(*scales);
  validate(scheme);
  return scheme;
}

// How users' configs say what a weight has beside its scale.
const char* scheme_word(const QuantScheme& scheme) {
  return scheme.zeros == ZeroKind::kNone ? "sym" : scheme.zeros == ZeroKind::kMin ? "min" : "asym";
}

py::dict to_dict(const QuantScheme& scheme) {
  py::dict fields;
  fields["dtype"] = name_of(scheme.dtype);
  fields["group_size"] = scheme.group_size;
  fields["zeros"] = name_of(scheme.zeros);
  fields["scales"] = name_of(scheme.scales);
  return fields;
}

// What a scheme says beside its fields, by the names that users know from configs.
py::object field(const QuantScheme& scheme, const std::string& name) {
  const py::dict fields = to_dict(scheme);
  if (fields.contains(name)) return fields[name.c_str()];
  if (name == "asym") return py::bool_(scheme.zeros != ZeroKind::kNone);
  if (name == "scheme") return py::str(scheme_word(scheme));
  if (name == "scale_dtype") return py::str(scale_dtype_name(scheme.scales));
  if (name == kDoubleQuant) return py::bool_(scheme.scales == ScaleEncoding::kDouble);
  throw py::key_error(name);
}

template <class T>
T value_of(const py::handle& value, const char* name, const char* what) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    fail("QuantScheme.", name, " must be ", what, ", got ", std::string(py::repr(value)));
  }
}

std::string text(const QuantScheme& scheme) {
  return concat("QuantScheme(dtype='", name_of(scheme.dtype), "', group_size=", scheme.group_size,
                ", zeros='", name_of(scheme.zeros), "', scales='", name_of(scheme.scales), "')");
}

py::array_t<float> code_values(const DtypeTraits& traits) {
  py::array_t<float> values(traits.max_code() + 1);
  for (int code = 0; code <= traits.max_code(); ++code)
    values.mutable_at(code) = code_value(traits, code);
  return values;
}

const DtypeTraits& traits_of_name(const std::string& dtype) {
  return traits_of(parse_weight_dtype(dtype));
}

std::vector<std::string> dtype_names() {
  std::vector<std::string> names;
  for (const DtypeTraits& traits : kDtypes) names.emplace_back(traits.name);
  return names;
}

py::dict dtype_aliases() {
  py::dict aliases;
  for (const DtypeAlias& alias : kDtypeAliases) aliases[alias.alias] = alias.name;
  return aliases;
}

std::vector<std::string> scale_dtype_names() {
  std::vector<std::string> names;
  for (const ScaleTraits& traits : kScaleEncodings) {
    if (traits.is_separate()) names.emplace_back(traits.name);
  }
  return names;
}

}  // namespace

QuantScheme scheme_from_fields(const py::dict& fields) {
  QuantScheme scheme;
  std::string scale_dtype;
  bool doubly = false;
  for (const auto& [key, value] : fields) {
    const auto name = key.cast<std::string>();
    if (name == "dtype") {
      scheme.dtype = parse_weight_dtype(value_of<std::string>(value, "dtype", "a string"));
    } else if (name == "group_size") {
      scheme.group_size = value_of<int64_t>(value, "group_size", "an integer");
    } else if (name == "zeros") {
      scheme.zeros = parse_zero_kind(value_of<std::string>(value, "zeros", "a string"));
    } else if (name == "scales") {
      scheme.scales = parse_scales(value_of<std::string>(value, "scales", "a string"));
    } else if (name == "asym") {
      scheme.zeros = value_of<bool>(value, "asym", "a bool") ? ZeroKind::kInt : ZeroKind::kNone;
    } else if (name == "scale_dtype") {
      scale_dtype = value_of<std::string>(value, "scale_dtype", "a string");
    } else if (name == kDoubleQuant) {
      doubly = value_of<bool>(value, kDoubleQuant, "a bool");
    } else {
      fail("a scheme has no field '", name, "'; known: dtype, group_size, zeros, scales");
    }
  }
  if (!scale_dtype.empty() || doubly)
    scheme.scales = parse_scale_encoding(scale_dtype.empty() ? "fp32" : scale_dtype, doubly);
  validate(scheme);
  return scheme;
}

void bind_scheme(py::module_& module) {
  py::class_<QuantScheme>(module, "QuantScheme")
      .def(py::init(&make_scheme), py::arg("dtype") = "int4_clip", py::arg("group_size") = 32,
           py::arg("zeros") = "none", py::arg("scales") = "fp32")
      .def_property_readonly("dtype", [](const QuantScheme& s) { return name_of(s.dtype); })
      .def_property_readonly("group_size", [](const QuantScheme& s) { return s.group_size; })
      .def_property_readonly("zeros", [](const QuantScheme& s) { return name_of(s.zeros); })
      .def_property_readonly("scales", [](const QuantScheme& s) { return name_of(s.scales); })
      .def_property_readonly("asym",
                             [](const QuantScheme& s) { return s.zeros != ZeroKind::kNone; })
      .def_property_readonly("word", &scheme_word)
      .def_property_readonly("bits", [](const QuantScheme& s) { return traits_of(s.dtype).bits; })
      .def("group_length", &group_length, py::arg("cols"))
      .def("groups", &group_count, py::arg("cols"))
      .def("replace", &replaced, py::kw_only(), py::arg("dtype") = py::none(),
           py::arg("group_size") = py::none(), py::arg("zeros") = py::none(),
           py::arg("scales") = py::none())
      .def("to_dict", &to_dict)
      .def_static("from_dict", &scheme_from_fields, py::arg("fields"))
      .def("__getitem__", &field, py::arg("name"))
      .def(py::self == py::self)
      .def("__hash__", [](const QuantScheme& s) { return py::hash(py::str(text(s))); })
      .def("__repr__", &text)
      .def(py::pickle(&to_dict, &scheme_from_fields));

  py::class_<DtypeTraits>(module, "DtypeTraits")
      .def_readonly("name", &DtypeTraits::name)
      .def_readonly("bits", &DtypeTraits::bits)
      .def_readonly("signed_scale", &DtypeTraits::signed_scale)
      .def_property_readonly("is_integer", getter(&DtypeTraits::is_integer))
      .def_property_readonly("center", getter(&DtypeTraits::center))
      .def_property_readonly("max_code", getter(&DtypeTraits::max_code))
      .def_property_readonly("values", &code_values)
      .def("__repr__", [](const DtypeTraits& t) { return concat("DtypeTraits('", t.name, "')"); });

  module.def("dtype_traits", &traits_of_name, py::arg("dtype"), py::return_value_policy::reference);
  module.def("dtype_names", &dtype_names);
  module.def("dtype_aliases", &dtype_aliases);
  module.def("scale_dtype_names", &scale_dtype_names);
  module.def(
      "code_values", [](const std::string& dtype) { return code_values(traits_of_name(dtype)); },
      py::arg("dtype"));
  module.def(
      "scale_encoding",
      [](const std::string& scale_dtype, bool doubly_quantized) {
        return name_of(parse_scale_encoding(scale_dtype, doubly_quantized));
      },
      py::arg("scale_dtype"), py::arg("doubly_quantized"));
}

}  // namespace woq::python
