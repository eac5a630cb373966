// SPDX-License-Identifier: Apache-2.0
#include "quantized.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "getter.h"
#include "scheme.h"

namespace woq::python {

namespace {

// A numpy view of stored bytes that keeps `owner` alive. numpy has no bfloat16 of its own: such
// scales are uint16.
py::array view_of_tensor(const io::StoredTensor& tensor, const py::object& owner) {
  const TensorType type =
      tensor.spec.type == TensorType::kBf16 ? TensorType::kUint16 : tensor.spec.type;
  const std::vector<py::ssize_t> shape(tensor.spec.shape.begin(), tensor.spec.shape.end());
  py::array array(py::dtype(name_of(type)), shape, tensor.data, owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

py::dict tensors(const py::object& self) {
  py::dict result;
  for (const io::StoredTensor& tensor : io::stored_tensors(self.cast<QuantizedMatrix&>()))
    result[tensor.spec.name] = view_of_tensor(tensor, self);
  return result;
}

// {name: (shape, dtype)}
py::dict tensor_specs(const QuantScheme& scheme, int64_t rows, int64_t cols, bool has_g_idx,
                      bool has_act_scales) {
  py::dict result;
  for (const io::TensorSpec& spec :
       io::stored_tensors(scheme, rows, cols, has_g_idx, has_act_scales))
    result[spec.name] = py::make_tuple(py::tuple(py::cast(spec.shape)), name_of(spec.type));
  return result;
}

QuantizedMatrix from_tensors(const py::dict& tensors, int64_t rows, int64_t cols,
                             const QuantScheme& scheme, bool has_g_idx, bool has_act_scales) {
  std::map<std::string, TensorView> views;
  for (const io::TensorSpec& spec :
       io::stored_tensors(scheme, rows, cols, has_g_idx, has_act_scales)) {
    if (!tensors.contains(spec.name)) continue;
    const ArrayRef ref = array_ref(tensors[spec.name], spec.name);
    if (!ref.contiguous())
      fail("tensor '", spec.name, "' is not contiguous; pass a contiguous copy");
    views[spec.name] = {ref.type, ref.shape, ref.data, ref.size() * size_of(ref.type)};
  }
  const py::gil_scoped_release unlocked;
  return io::assemble(views, scheme, rows, cols, has_g_idx, has_act_scales);
}

// A contiguous 2-D array of bytes.
const uint8_t* byte_matrix(const ArrayRef& ref, const char* what) {
  if (ref.type != TensorType::kUint8 || ref.shape.size() != 2 || !ref.contiguous()) {
    fail(what, " must be a contiguous uint8 array of two dimensions, got ", name_of(ref.type), " ",
         shape_text(ref.shape));
  }
  return static_cast<const uint8_t*>(ref.data);
}

QuantizedMatrix matrix_from_codes(const py::object& codes, const py::object& scales,
                                  const py::object& zero_points, const QuantScheme& scheme) {
  const ArrayRef ref = array_ref(codes, "codes");
  const uint8_t* const bytes = byte_matrix(ref, "codes");
  const int64_t rows = ref.shape[0], cols = ref.shape[1], groups = group_count(scheme, cols);
  const std::vector<float> scale_values = float_matrix(scales, "scales", rows, groups);
  std::vector<float> zeros;
  if (!zero_points.is_none()) zeros = float_matrix(zero_points, "zero_points", rows, groups);
  const py::gil_scoped_release unlocked;
  return from_codes(bytes, scale_values.data(), zero_points.is_none() ? nullptr : zeros.data(),
                    scheme, rows, cols);
}

QuantizedMatrix matrix_with_g_idx(const QuantizedMatrix& matrix, const py::object& g_idx) {
  if (g_idx.is_none()) return with_g_idx(matrix, nullptr);
  const ArrayRef ref = array_ref(g_idx, "g_idx");
  if (ref.type != TensorType::kInt32 || ref.shape != std::vector<int64_t>{matrix.cols} ||
      !ref.contiguous()) {
    fail("g_idx must be a contiguous int32 array of shape [", matrix.cols, "], got ",
         name_of(ref.type), " ", shape_text(ref.shape));
  }
  return with_g_idx(matrix, static_cast<const int32_t*>(ref.data));
}

QuantizedMatrix matrix_with_act_scales(const QuantizedMatrix& matrix, const py::object& scales) {
  const std::vector<float> values = float_vector(scales, "act_scales");
  if (static_cast<int64_t>(values.size()) != matrix.cols)
    fail("act_scales has ", values.size(), " elements, expected ", matrix.cols);
  return with_act_scales(matrix, values.data());
}

// Scales as a matrix of this scheme gives them back.
py::array_t<float> stored_scales(const py::object& scales, const QuantScheme& scheme) {
  const ConstMatrixView view = input_matrix(scales, "scales");
  const std::vector<float> values = float_matrix(scales, "scales", view.rows, view.cols);
  const ScaleTable table = ScaleTable::encode(values.data(), view.rows, view.cols, scheme.scales,
                                              has_signed_scales(scheme));
  py::array_t<float> array({view.rows, view.cols});
  for (int64_t i = 0; i < table.size(); ++i) array.mutable_data()[i] = table.at(i);
  return array;
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

// [N, G], or None where the scheme has no minima.
py::object minima(const QuantizedMatrix& matrix) {
  if (matrix.scheme.zeros != ZeroKind::kMin) return py::none();
  py::array_t<float> array({matrix.rows, matrix.groups()});
  for (int64_t i = 0; i < matrix.minima.size(); ++i) array.mutable_data()[i] = matrix.minima.at(i);
  return array;
}

py::object zero_points(const QuantizedMatrix& matrix) {
  if (zero_point_bytes(matrix.scheme.zeros) == 0) return py::none();
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

py::array_t<float> dequantized_rows(const QuantizedMatrix& matrix, int64_t begin, int64_t end,
                                    int num_threads) {
  py::array_t<float> array({std::max<int64_t>(0, end - begin), matrix.cols});
  float* const out = array.mutable_data();
  const py::gil_scoped_release unlocked;
  dequantize_rows(matrix, begin, end, out, num_threads);
  return array;
}

// Either a scheme, or its fields by name.
QuantizedMatrix rtn(const py::object& weight, const std::optional<QuantScheme>& given,
                    bool mse_range, const py::object& importance, const std::string& name,
                    int num_threads, const py::kwargs& fields) {
  if (given && fields.size() > 0)
    fail("quantize_rtn takes a scheme or the fields of one, not both");
  const QuantScheme scheme = given ? *given : scheme_from_fields(fields);
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

void bind_quantized(py::module_& module) {
  py::class_<QuantizedMatrix>(module, "QuantizedMatrix")
      .def_readonly("rows", &QuantizedMatrix::rows)
      .def_readonly("cols", &QuantizedMatrix::cols)
      .def_readonly("scheme", &QuantizedMatrix::scheme)
      .def_property_readonly("has_g_idx",
                             [](const QuantizedMatrix& m) { return m.g_idx.size() > 0; })
      .def_property_readonly("has_act_scales",
                             [](const QuantizedMatrix& m) { return m.act_scales.size() > 0; })
      .def_property_readonly("nbytes", getter(&QuantizedMatrix::bytes))
      .def("codes", &codes)
      .def("scales", &scales)
      .def("zero_points", &zero_points)
      .def("minima", &minima)
      .def("dequantize", &dequantized)
      .def("dequantize_rows", &dequantized_rows, py::arg("begin"), py::arg("end"),
           py::arg("num_threads") = 0)
      .def("tensors", &tensors)
      .def("with_g_idx", &matrix_with_g_idx, py::arg("g_idx") = py::none())
      .def("with_act_scales", &matrix_with_act_scales, py::arg("act_scales"))
      .def("validate", [](const QuantizedMatrix& m) { validate(m); })
      .def_static("from_tensors", &from_tensors, py::arg("tensors"), py::kw_only(), py::arg("rows"),
                  py::arg("cols"), py::arg("scheme"), py::arg("has_g_idx") = false,
                  py::arg("has_act_scales") = false)
      .def_static("from_codes", &matrix_from_codes, py::arg("codes"), py::arg("scales"),
                  py::arg("zero_points"), py::arg("scheme"))
      .def("__repr__", [](const QuantizedMatrix& m) {
        return concat("QuantizedMatrix(", m.rows, " x ", m.cols, ", ", m.dtype().name,
                      ", group_size=", m.scheme.group_size,
                      m.scheme.zeros == ZeroKind::kNone ? ", sym, " : ", asym, ", m.bytes(),
                      " bytes)");
      });
  module.def("stored_tensors", &tensor_specs, py::arg("scheme"), py::arg("rows"), py::arg("cols"),
             py::arg("has_g_idx") = false, py::arg("has_act_scales") = false);
  module.def("stored_scales", &stored_scales, py::arg("scales"), py::arg("scheme"));
  module.def("quantize_rtn", &rtn, py::arg("weight"), py::arg("scheme") = py::none(), py::kw_only(),
             py::arg("mse_range") = false, py::arg("importance") = py::none(),
             py::arg("name") = "weight", py::arg("num_threads") = 0);
  module.def("error_metrics", &error_metrics, py::arg("weight"), py::arg("quantized"));
}

}  // namespace woq::python
