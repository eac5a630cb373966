// SPDX-License-Identifier: Apache-2.0
#include "foreign.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "arrays.h"
#include "woq/io/foreign.h"

namespace woq::python {

namespace {

// The tensors of a layer, in place; the dict must outlive them.
io::ForeignTensors foreign_tensors(const py::dict& tensors) {
  io::ForeignTensors views;
  for (const auto& [key, value] : tensors) {
    const std::string name = py::cast<std::string>(key);
    const ArrayRef ref = array_ref(value, name.c_str());
    if (!ref.contiguous()) fail("tensor '", name, "' is not contiguous; pass a contiguous copy");
    views[name] = {ref.type, ref.shape, ref.data, ref.size() * size_of(ref.type)};
  }
  return views;
}

io::GptqZeros parse_zeros(std::string_view text) {
  constexpr std::pair<std::string_view, io::GptqZeros> kNames[] = {
      {"v1", io::GptqZeros::kV1},
      {"v2", io::GptqZeros::kV2},
      {"v1_borrowed", io::GptqZeros::kV1Borrowed},
  };
  for (const auto& [name, zeros] : kNames) {
    if (text == name) return zeros;
  }
  fail("unknown kind of GPTQ zero points '", text, "'; known: v1, v2, v1_borrowed");
}

// The matrix, and a sentence about how zero points were understood.
std::pair<QuantizedMatrix, std::string> gptq(const py::dict& tensors, int64_t rows, int64_t cols,
                                             int bits, int64_t group_size, bool sym,
                                             std::string_view zeros, bool planes) {
  io::GptqOptions options;
  options.bits = bits;
  options.group_size = group_size;
  options.sym = sym;
  options.zeros = parse_zeros(zeros);
  options.layout = planes ? io::WordLayout::kPlanes : io::WordLayout::kStream;
  const io::ForeignTensors views = foreign_tensors(tensors);
  const py::gil_scoped_release unlocked;
  std::string rule;
  QuantizedMatrix matrix = io::read_gptq(views, rows, cols, options, &rule);
  return {std::move(matrix), std::move(rule)};
}

// A reader that takes the tensors, the shape and further arguments.
template <auto Read, class... Args>
QuantizedMatrix read(const py::dict& tensors, int64_t rows, int64_t cols, Args... args) {
  const io::ForeignTensors views = foreign_tensors(tensors);
  const py::gil_scoped_release unlocked;
  return Read(views, rows, cols, args...);
}

QuantizedMatrix bitsandbytes4(const py::dict& tensors, int64_t rows, int64_t cols, bool nf4,
                              int64_t block_size, float nested_offset) {
  return read<&io::read_bitsandbytes4, io::BitsandbytesOptions>(tensors, rows, cols,
                                                                {nf4, block_size, nested_offset});
}

QuantizedMatrix fp4(const py::dict& tensors, int64_t rows, int64_t cols, std::string_view scales,
                    int64_t group_size, float multiplier, float divisor) {
  return read<&io::read_fp4, io::Fp4Options>(
      tensors, rows, cols, {parse_scales(scales), group_size, {multiplier, divisor}});
}

}  // namespace

void bind_foreign(py::module_& module) {
  const auto tensors = py::arg("tensors"), rows = py::arg("rows"), cols = py::arg("cols"),
             group_size = py::arg("group_size"), bits = py::arg("bits");
  module.def("read_gptq", &gptq, tensors, rows, cols, py::kw_only(), bits, group_size,
             py::arg("sym"), py::arg("zeros"), py::arg("planes") = false);
  module.def("read_awq", &read<&io::read_awq, int64_t, int>, tensors, rows, cols, group_size,
             py::arg("bits") = 4);
  module.def("read_compressed_packed", &read<&io::read_compressed_packed, int, int64_t>, tensors,
             rows, cols, bits, group_size);
  module.def("read_compressed_int", &read<&io::read_compressed_int, int64_t>, tensors, rows, cols,
             group_size);
  module.def("read_bitsandbytes4", &bitsandbytes4, tensors, rows, cols, py::kw_only(),
             py::arg("nf4"), py::arg("block_size"), py::arg("nested_offset") = 0.0f);
  module.def("read_bitsandbytes8", &read<&io::read_bitsandbytes8>, tensors, rows, cols);
  module.def("read_fp4", &fp4, tensors, rows, cols, py::kw_only(), py::arg("scales"), group_size,
             py::arg("multiplier") = 1.0f, py::arg("divisor") = 1.0f);
  module.def("read_hqq", &read<&io::read_hqq, int, int64_t>, tensors, rows, cols, bits, group_size);
}

}  // namespace woq::python
