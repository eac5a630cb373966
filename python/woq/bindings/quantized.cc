// SPDX-License-Identifier: Apache-2.0
#include "quantized.h"

#include <cmath>
#include <cstring>
#include <utility>

namespace woq::python {

namespace {

ElementType scale_element(ScaleEncoding encoding) {
  switch (encoding) {
    case ScaleEncoding::kFp32: return ElementType::kFp32;
    case ScaleEncoding::kFp16: return ElementType::kFp16;
    case ScaleEncoding::kBf16: return ElementType::kUint16;
    case ScaleEncoding::kDouble: break;
  }
  return ElementType::kUint8;
}

// A numpy view of stored bytes that keeps `owner` alive. numpy has no bfloat16 of its own: such
// scales are uint16.
py::array view(const Buffer& buffer, ElementType type, std::vector<py::ssize_t> shape,
               const py::object& owner) {
  py::array array(py::dtype(name_of(type)), std::move(shape), buffer.data(), owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

// The stored tensors by name. One list serves writing, reading and its error messages.
struct StoredTensor {
  const char* name;
  Buffer* buffer;
  ElementType type;
  std::vector<int64_t> shape;
};

std::vector<StoredTensor> stored_tensors(QuantizedMatrix& matrix) {
  const int64_t n = matrix.rows, g = matrix.groups();
  std::vector<StoredTensor> list = {
      {"qweight", &matrix.qweight, ElementType::kUint8, {n, matrix.row_bytes()}},
      {"scales", &matrix.scales.values, scale_element(matrix.scheme.scales), {n, g}},
  };
  if (matrix.scheme.zeros == ZeroKind::kInt) {
    list.push_back({"zero_points", &matrix.zero_points, ElementType::kUint8, {n, g}});
  }
  if (matrix.scheme.zeros == ZeroKind::kFloat)
    list.push_back({"zero_points", &matrix.zero_points, ElementType::kFp32, {n, g}});
  if (matrix.g_idx.size() > 0)
    list.push_back({"g_idx", &matrix.g_idx, ElementType::kInt32, {matrix.cols}});
  if (matrix.act_scales.size() > 0)
    list.push_back({"act_scales", &matrix.act_scales, ElementType::kFp32, {matrix.cols}});
  if (matrix.scheme.scales == ScaleEncoding::kDouble) {
    list.push_back({"scales_absmax",
                    &matrix.scales.block_absmax,
                    ElementType::kFp32,
                    {matrix.scales.blocks()}});
    if (has_signed_scales(matrix.scheme)) {
      list.push_back({"scales_sign", &matrix.scales.signs, ElementType::kUint8, {(n * g + 7) / 8}});
    }
  }
  return list;
}

py::dict tensors(const py::object& self) {
  auto& matrix = self.cast<QuantizedMatrix&>();
  py::dict result;
  for (const StoredTensor& tensor : stored_tensors(matrix)) {
    result[tensor.name] =
        view(*tensor.buffer, tensor.type, {tensor.shape.begin(), tensor.shape.end()}, self);
  }
  if (matrix.scheme.scales == ScaleEncoding::kDouble) {
    py::array_t<float> offset(1);
    offset.mutable_at(0) = matrix.scales.offset;
    result["scales_offset"] = offset;
  }
  return result;
}

ArrayRef stored_tensor(const py::dict& tensors, const char* name, ElementType type,
                       const std::vector<int64_t>& shape) {
  if (!tensors.contains(name)) fail("tensor '", name, "' is missing from the quantized weight");
  const ArrayRef ref = array_ref(tensors[name], name);
  const bool bf16_bits = type == ElementType::kUint16 && ref.type == ElementType::kBf16;
  if (ref.type != type && !bf16_bits)
    fail("tensor '", name, "' is ", name_of(ref.type), ", expected ", name_of(type));
  if (ref.shape != shape)
    fail("tensor '", name, "' has shape ", shape_text(ref.shape), ", expected ", shape_text(shape));
  if (!ref.contiguous()) fail("tensor '", name, "' is not contiguous; pass a contiguous copy");
  return ref;
}

QuantizedMatrix from_tensors(const py::dict& tensors, int64_t rows, int64_t cols,
                             const std::string& dtype, int64_t group_size, bool asym,
                             const std::string& scale_dtype, bool double_quant, bool act_order,
                             bool scales_input) {
  QuantScheme scheme = make_scheme(dtype, group_size, asym, scale_dtype, double_quant);
  // HQQ's zero points are real numbers; the tensor's type says so.
  if (asym && tensors.contains("zero_points") &&
      array_ref(tensors["zero_points"], "zero_points").type == ElementType::kFp32) {
    scheme.zeros = ZeroKind::kFloat;
  }
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  matrix.scales =
      ScaleTable::allocate(scheme.scales, rows, matrix.groups(), has_signed_scales(scheme));
  if (act_order) matrix.g_idx = Buffer(cols * 4);
  if (scales_input) matrix.act_scales = Buffer(cols * 4);
  for (const StoredTensor& tensor : stored_tensors(matrix)) {
    const ArrayRef ref = stored_tensor(tensors, tensor.name, tensor.type, tensor.shape);
    if (tensor.buffer->size() > 0) {
      std::memcpy(tensor.buffer->data(), ref.data, static_cast<size_t>(tensor.buffer->size()));
    }
  }
  if (scheme.scales == ScaleEncoding::kDouble) {
    matrix.scales.offset = *static_cast<const float*>(
        stored_tensor(tensors, "scales_offset", ElementType::kFp32, {1}).data);
  }
  for (int64_t i = 0; i < matrix.scales.size(); ++i) {
    const float scale = matrix.scales.at(i);
    if (!(std::fabs(scale) <= 3.402823466e+38f)) {
      fail("tensor 'scales' decodes to ", scale, " at row ", i / matrix.groups(), ", group ",
           i % matrix.groups(), "; the checkpoint is corrupt");
    }
  }
  if (scheme.zeros == ZeroKind::kFloat) {
    for (int64_t i = 0; i < matrix.scales.size(); ++i) {
      const float zero = matrix.zero_points.as<float>()[i];
      if (!std::isfinite(zero)) {
        fail("tensor 'zero_points' holds ", zero, " at row ", i / matrix.groups(), ", group ",
             i % matrix.groups(), "; the checkpoint is corrupt");
      }
    }
  }
  for (int64_t i = 0; scheme.zeros == ZeroKind::kInt && i < matrix.zero_points.size(); ++i) {
    if (matrix.zero_points.data()[i] > matrix.dtype().max_code()) {
      fail("tensor 'zero_points' holds ", static_cast<int>(matrix.zero_points.data()[i]),
           " at row ", i / matrix.groups(), ", group ", i % matrix.groups(),
           "; the largest code of ", dtype, " is ", matrix.dtype().max_code());
    }
  }
  if (matrix.g_idx.size() > 0) detail::columns_by_group(matrix);
  for (int64_t k = 0; k < matrix.act_scales.size() / 4; ++k) {
    const float scale = matrix.act_scales.as<float>()[k];
    if (!std::isfinite(scale) || scale == 0)
      fail("tensor 'act_scales' holds ", scale, " at column ", k,
           "; multipliers are finite and not 0");
  }
  return matrix;
}

py::array_t<uint8_t> codes(const QuantizedMatrix& matrix) {
  py::array_t<uint8_t> array({matrix.rows, matrix.cols});
  uint8_t* out = array.mutable_data();
  for (int64_t n = 0; n < matrix.rows; ++n) {
    for (int64_t k = 0; k < matrix.cols; ++k) *out++ = static_cast<uint8_t>(matrix.code(n, k));
  }
  return array;
}

py::array_t<float> scales(const QuantizedMatrix& matrix) {
  py::array_t<float> array({matrix.rows, matrix.groups()});
  for (int64_t i = 0; i < matrix.scales.size(); ++i) array.mutable_data()[i] = matrix.scales.at(i);
  return array;
}

py::object zero_points(const QuantizedMatrix& matrix) {
  if (matrix.scheme.zeros == ZeroKind::kNone) return py::none();
  const bool real = matrix.scheme.zeros == ZeroKind::kFloat;
  py::array array(py::dtype(real ? "float32" : "uint8"), {matrix.rows, matrix.groups()});
  std::memcpy(array.mutable_data(), matrix.zero_points.data(),
              static_cast<size_t>(matrix.zero_points.size()));
  return array;
}

py::array_t<float> dequantized(const QuantizedMatrix& matrix) {
  py::array_t<float> array({matrix.rows, matrix.cols});
  float* const out = array.mutable_data();
  const py::gil_scoped_release unlocked;
  dequantize(matrix, out);
  return array;
}

QuantizedMatrix rtn(const py::object& weight, const std::string& dtype, int64_t group_size,
                    bool asym, const std::string& scale_dtype, bool double_quant, bool mse_range,
                    const py::object& importance, const std::string& name, int num_threads) {
  const QuantScheme scheme = make_scheme(dtype, group_size, asym, scale_dtype, double_quant);
  const ConstMatrixView view = input_matrix(weight, name.c_str());
  RtnOptions options{mse_range, name, {}};
  if (!importance.is_none()) options.importance = float_vector(importance, "importance");
  const py::gil_scoped_release unlocked;
  return quantize_rtn(view, scheme, options, num_threads);
}

py::dict error_metrics(const py::object& weight, const QuantizedMatrix& matrix) {
  const ConstMatrixView view = input_matrix(weight, "weight");
  QuantError error;
  {
    const py::gil_scoped_release unlocked;
    error = quantization_error(view, matrix);
  }
  py::dict result;
  result["mse"] = error.mse;
  result["sqnr_db"] = error.sqnr_db;
  result["max_abs"] = error.max_abs;
  return result;
}

}  // namespace

QuantScheme make_scheme(const std::string& dtype, int64_t group_size, bool asym,
                        const std::string& scale_dtype, bool double_quant) {
  QuantScheme scheme;
  scheme.dtype = parse_weight_dtype(dtype);
  scheme.group_size = group_size;
  scheme.zeros = asym ? ZeroKind::kInt : ZeroKind::kNone;
  scheme.scales = parse_scale_encoding(scale_dtype, double_quant);
  validate(scheme);
  return scheme;
}

void bind_quantized(py::module_& module) {
  py::class_<QuantizedMatrix>(module, "QuantizedMatrix")
      .def_readonly("rows", &QuantizedMatrix::rows)
      .def_readonly("cols", &QuantizedMatrix::cols)
      .def_property_readonly("dtype", [](const QuantizedMatrix& m) { return m.dtype().name; })
      .def_property_readonly("group_size",
                             [](const QuantizedMatrix& m) { return m.scheme.group_size; })
      .def_property_readonly(
          "asym", [](const QuantizedMatrix& m) { return m.scheme.zeros != ZeroKind::kNone; })
      .def_property_readonly(
          "scale_dtype", [](const QuantizedMatrix& m) { return scale_dtype_name(m.scheme.scales); })
      .def_property_readonly(
          "double_quant",
          [](const QuantizedMatrix& m) { return m.scheme.scales == ScaleEncoding::kDouble; })
      .def_property_readonly("act_order",
                             [](const QuantizedMatrix& m) { return m.g_idx.size() > 0; })
      .def_property_readonly("scales_input",
                             [](const QuantizedMatrix& m) { return m.act_scales.size() > 0; })
      .def_property_readonly("nbytes", &QuantizedMatrix::bytes)
      .def("codes", &codes)
      .def("scales", &scales)
      .def("zero_points", &zero_points)
      .def("dequantize", &dequantized)
      .def("tensors", &tensors)
      .def_static("from_tensors", &from_tensors, py::arg("tensors"), py::kw_only(), py::arg("rows"),
                  py::arg("cols"), py::arg("dtype"), py::arg("group_size"), py::arg("asym"),
                  py::arg("scale_dtype"), py::arg("double_quant"), py::arg("act_order") = false,
                  py::arg("scales_input") = false)
      .def("__repr__", [](const QuantizedMatrix& m) {
        return concat("QuantizedMatrix(", m.rows, " x ", m.cols, ", ", m.dtype().name,
                      ", group_size=", m.scheme.group_size,
                      m.scheme.zeros == ZeroKind::kNone ? ", sym, " : ", asym, ", m.bytes(),
                      " bytes)");
      });
  module.def("quantize_rtn", &rtn, py::arg("weight"), py::kw_only(), py::arg("dtype"),
             py::arg("group_size") = 32, py::arg("asym") = false, py::arg("scale_dtype") = "fp32",
             py::arg("double_quant") = false, py::arg("mse_range") = false,
             py::arg("importance") = py::none(), py::arg("name") = "weight",
             py::arg("num_threads") = 0);
  module.def("error_metrics", &error_metrics, py::arg("weight"), py::arg("quantized"));
}

}  // namespace woq::python
