// SPDX-License-Identifier: Apache-2.0
#include "foreign_writers.h"

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "arrays.h"
#include "woq/io/foreign_writers.h"

namespace woq::python {

namespace {

// Numpy arrays that own the bytes of the tensors. numpy has no bfloat16 of its own: such scales are
// uint16.
py::dict arrays_of(io::OwnedTensors tensors) {
  py::dict result;
  for (auto& [name, tensor] : tensors) {
    const TensorType type = tensor.type == TensorType::kBf16 ? TensorType::kUint16 : tensor.type;
    const std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
    auto* const held = new Buffer(std::move(tensor.data));
    const py::capsule owner(held, [](void* buffer) { delete static_cast<Buffer*>(buffer); });
    result[name.c_str()] = py::array(py::dtype(name_of(type)), shape, held->data(), owner);
  }
  return result;
}

io::WrittenScales written_scales(std::string_view type, bool round) {
  for (const TensorType each : {TensorType::kFp32, TensorType::kFp16, TensorType::kBf16}) {
    if (type == name_of(each)) return {each, round};
  }
  fail("scales cannot be written as '", type, "'; known: float32, float16, bfloat16");
}

// A writer of integers: the matrix, further arguments, and how scales are written.
template <auto Write, class... Args>
py::dict write(const QuantizedMatrix& matrix, Args... args, std::string_view scales,
               bool round_scales) {
  io::OwnedTensors tensors;
  {
    const py::gil_scoped_release unlocked;
    tensors = Write(matrix, args..., written_scales(scales, round_scales));
  }
  return arrays_of(std::move(tensors));
}

py::dict write_bitsandbytes4(const QuantizedMatrix& matrix) {
  return arrays_of(io::write_bitsandbytes4(matrix));
}

}  // namespace

void bind_foreign_writers(py::module_& module) {
  const auto matrix = py::arg("matrix"), scales = py::arg("scales");
  const auto round_scales = py::arg("round_scales") = false;
  const auto keywords = py::kw_only();
  module.def("write_gptq", &write<&io::write_gptq, bool>, matrix, keywords, py::arg("v2"), scales,
             round_scales);
  module.def("write_awq", &write<&io::write_awq>, matrix, keywords, scales, round_scales);
  module.def("write_compressed_packed", &write<&io::write_compressed_packed>, matrix, keywords,
             scales, round_scales);
  module.def("write_compressed_int", &write<&io::write_compressed_int>, matrix, keywords, scales,
             round_scales);
  module.def("write_bitsandbytes4", &write_bitsandbytes4, matrix);
  module.def("has_act_order", &io::has_act_order, matrix);
}

}  // namespace woq::python
