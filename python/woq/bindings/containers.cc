// SPDX-License-Identifier: Apache-2.0
#include "containers.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "arrays.h"
#include "woq/core/check.h"
#include "woq/io/gguf.h"
#include "woq/io/gguf_matrix.h"
#include "woq/io/gguf_matrix_writer.h"
#include "woq/io/safetensors.h"

namespace woq::python {

namespace py = pybind11;

namespace {

// The bytes of a tensor, read-only, which keep `owner` alive.
py::array bytes_of(std::string_view data, const py::object& owner) {
  py::array_t<uint8_t> array(static_cast<py::ssize_t>(data.size()),
                             reinterpret_cast<const uint8_t*>(data.data()), owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

py::tuple described(std::string_view type, const std::vector<int64_t>& shape, std::string_view data,
                    const py::object& owner) {
  return py::make_tuple(py::str(type.data(), type.size()), py::tuple(py::cast(shape)),
                        bytes_of(data, owner));
}

py::dict safetensors_tensors(const py::object& self) {
  py::dict result;
  for (const auto& [name, tensor] : self.cast<const io::SafetensorsModel&>().tensors)
    result[py::str(name)] = described(tensor.type->name, tensor.shape, tensor.data, self);
  return result;
}

py::dict gguf_tensors(const py::object& self) {
  py::dict result;
  for (const auto& [name, tensor] : self.cast<const io::GgufModel&>().tensors) {
    const std::string type = tensor.type != nullptr ? std::string(tensor.type->name)
                                                    : woq::concat("unknown type ", tensor.type_id);
    result[py::str(name.data(), name.size())] = described(type, tensor.shape, tensor.data, self);
  }
  return result;
}

const char* numpy_name(io::GgufValueType type) {
  switch (type) {
    case io::GgufValueType::kU8: return "uint8";
    case io::GgufValueType::kI8: return "int8";
    case io::GgufValueType::kU16: return "uint16";
    case io::GgufValueType::kI16: return "int16";
    case io::GgufValueType::kU32: return "uint32";
    case io::GgufValueType::kI32: return "int32";
    case io::GgufValueType::kF32: return "float32";
    case io::GgufValueType::kBool: return "bool";
    case io::GgufValueType::kU64: return "uint64";
    case io::GgufValueType::kI64: return "int64";
    case io::GgufValueType::kF64: return "float64";
    case io::GgufValueType::kString:
    case io::GgufValueType::kArray: break;
  }
  return "uint8";  // not reached: those are no numbers
}

struct ToPython {
  py::object operator()(std::string_view text) const { return py::str(text.data(), text.size()); }
  py::object operator()(const io::GgufArray& array) const {
    if (array.type == io::GgufValueType::kString) {
      py::list texts;
      for (const std::string_view text : array.texts) texts.append((*this)(text));
      return texts;
    }
    const py::bytes raw(array.bytes.data(), array.bytes.size());
    return py::module_::import("numpy").attr("frombuffer")(raw, numpy_name(array.type));
  }
  template <class T>
  py::object operator()(T number) const {
    return py::cast(number);
  }
};

py::dict gguf_metadata(const io::GgufModel& model) {
  py::dict result;
  for (const auto& [key, value] : model.metadata)
    result[py::str(key.data(), key.size())] = std::visit(ToPython(), value.value);
  return result;
}

// The bytes of each value, its type before it, as the file has them.
py::dict gguf_stored_metadata(const io::GgufModel& model) {
  py::dict result;
  for (const auto& [key, value] : model.metadata)
    result[py::str(key.data(), key.size())] = py::bytes(value.stored.data(), value.stored.size());
  return result;
}

const io::GgufType& parse_gguf_type(std::string_view name) {
  for (const io::GgufType& type : io::kGgufTypes) {
    if (name == type.name) return type;
  }
  fail("unknown type of GGUF tensors '", name, "'");
}

QuantizedMatrix gguf_matrix(std::string_view type, const py::object& data, int64_t rows,
                            int64_t cols, const py::object& row_order, int num_threads) {
  const ArrayRef ref = array_ref(data, "the tensor's bytes");
  if (ref.type != ElementType::kUint8 || !ref.contiguous())
    fail("the tensor's bytes must be a contiguous uint8 array, got ", name_of(ref.type));
  std::vector<int64_t> order;
  if (!row_order.is_none()) order = py::cast<std::vector<int64_t>>(row_order);
  const std::string_view bytes(static_cast<const char*>(ref.data), static_cast<size_t>(ref.size()));
  const py::gil_scoped_release unlocked;
  return io::read_gguf_matrix(parse_gguf_type(type), bytes, rows, cols, order, num_threads);
}

// The bytes of the rows, uint8 [N, bytes of a row].
py::array write_gguf_matrix(const QuantizedMatrix& matrix, std::string_view type, bool round_scales,
                            int num_threads) {
  Buffer bytes;
  {
    const py::gil_scoped_release unlocked;
    bytes = io::write_gguf_matrix(matrix, parse_gguf_type(type), round_scales, num_threads);
  }
  const py::ssize_t row_bytes = bytes.size() / matrix.rows;
  auto* const held = new Buffer(std::move(bytes));
  const py::capsule owner(held, [](void* buffer) { delete static_cast<Buffer*>(buffer); });
  return py::array(py::dtype("uint8"), {static_cast<py::ssize_t>(matrix.rows), row_bytes},
                   held->data(), owner);
}

}  // namespace

void bind_containers(py::module_& module) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<io::SafetensorsModel>(module, "SafetensorsModel")
      .def(py::init(&io::open_safetensors), py::arg("path"), unlocked)
      .def_property_readonly("tensors", &safetensors_tensors)
      .def_property_readonly(
          "metadata", [](const io::SafetensorsModel& model) { return py::cast(model.metadata); });
  py::class_<io::GgufModel>(module, "GgufModel")
      .def(py::init(&io::open_gguf), py::arg("path"), unlocked)
      .def_property_readonly("tensors", &gguf_tensors)
      .def_property_readonly("metadata", &gguf_metadata)
      .def_property_readonly("stored_metadata", &gguf_stored_metadata);
  module.def("read_gguf_matrix", &gguf_matrix, py::arg("type"), py::arg("data"), py::arg("rows"),
             py::arg("cols"), py::arg("row_order") = py::none(), py::arg("num_threads") = 0);
  module.def(
      "gguf_type_for", [](const QuantizedMatrix& matrix) { return io::gguf_type_for(matrix).name; },
      py::arg("matrix"), unlocked);
  module.def("write_gguf_matrix", &write_gguf_matrix, py::arg("matrix"), py::arg("type"),
             py::arg("round_scales") = false, py::arg("num_threads") = 0);
  py::dict types;
  for (const io::GgufType& type : io::kGgufTypes)
    types[type.name] = py::make_tuple(type.id, type.block_elements, type.block_bytes);
  module.attr("GGUF_TYPES") = types;
  module.def(
      "is_gguf_matrix",
      [](std::string_view type) { return io::is_gguf_matrix(parse_gguf_type(type)); },
      py::arg("type"));
}

}  // namespace woq::python
