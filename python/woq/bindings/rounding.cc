// SPDX-License-Identifier: Apache-2.0
#include "rounding.h"

#include "arrays.h"
#include "woq/quant/rounding.h"
#include "woq/woq.h"

namespace woq::python {

namespace {

float* floats(const py::object& object, const char* what, int64_t rows, int64_t cols,
              bool written = false) {
  const ArrayRef ref = array_ref(object, what);
  const std::vector<int64_t> shape = {rows, cols};
  if (ref.type != ElementType::kFp32 || ref.shape != shape || !ref.contiguous() ||
      (written && !ref.writable)) {
    fail(what, " must be a contiguous float32 array of shape ", shape_text(shape), ", got ",
         name_of(ref.type), " ", shape_text(ref.shape));
  }
  return static_cast<float*>(ref.data);
}

TunedRounding tuned(const py::object& weight, const py::object& offsets, const py::object& scales,
                    const py::object& zeros, const py::object& table, int64_t group, float top) {
  const ArrayRef ref = array_ref(weight, "the weight");
  if (ref.shape.size() != 2) fail("the weight has shape ", shape_text(ref.shape));
  TunedRounding r;
  r.rows = ref.shape[0];
  r.cols = ref.shape[1];
  if (group < 1) fail("group must be at least 1, got ", group);
  r.group = group;
  r.top = top;
  r.weight = floats(weight, "the weight", r.rows, r.cols);
  r.offsets = floats(offsets, "offsets", r.rows, r.cols, true);
  r.scales = floats(scales, "scales", r.rows, r.groups());
  if (!zeros.is_none()) r.zeros = floats(zeros, "zeros", r.rows, r.groups());
  if (!table.is_none()) {
    const ArrayRef points = array_ref(table, "table");
    if (points.shape.size() != 1 || points.shape[0] < 2)
      fail("table has shape ", shape_text(points.shape), ", expected at least 2 points");
    r.points = static_cast<int>(points.shape[0]);
    if (points.type != ElementType::kFp32 || !points.contiguous())
      fail("table must be a contiguous float32 array");
    r.table = static_cast<const float*>(points.data);
  }
  return r;
}

void weight(const py::object& weight, const py::object& offsets, const py::object& scales,
            const py::object& zeros, const py::object& table, int64_t group, float top,
            const py::object& out, int num_threads) {
  const TunedRounding r = tuned(weight, offsets, scales, zeros, table, group, top);
  const MatrixView view = output_matrix(out, "the rounded weight");
  const py::gil_scoped_release unlocked;
  rounded_weight(r, view, num_threads);
}

void step(const py::object& weight, const py::object& offsets, const py::object& scales,
          const py::object& zeros, const py::object& table, int64_t group, float top,
          const py::object& gradient, float rate, const py::object& scale_gradients,
          const py::object& zero_gradients, int num_threads) {
  const TunedRounding r = tuned(weight, offsets, scales, zeros, table, group, top);
  const ConstMatrixView view = input_matrix(gradient, "the gradient");
  float* const of_scales = floats(scale_gradients, "scale_gradients", r.rows, r.groups(), true);
  float* const of_zeros = zero_gradients.is_none()
                              ? nullptr
                              : floats(zero_gradients, "zero_gradients", r.rows, r.groups(), true);
  const py::gil_scoped_release unlocked;
  rounding_step(r, view, rate, of_scales, of_zeros, num_threads);
}

}  // namespace

void bind_rounding(py::module_& module) {
  module.def("rounded_weight", &weight, py::arg("weight"), py::arg("offsets"), py::arg("scales"),
             py::arg("zeros"), py::arg("table"), py::kw_only(), py::arg("group"), py::arg("top"),
             py::arg("out"), py::arg("num_threads") = 0);
  module.def("rounding_step", &step, py::arg("weight"), py::arg("offsets"), py::arg("scales"),
             py::arg("zeros"), py::arg("table"), py::kw_only(), py::arg("group"), py::arg("top"),
             py::arg("gradient"), py::arg("rate"), py::arg("scale_gradients"),
             py::arg("zero_gradients"), py::arg("num_threads") = 0);
}

}  // namespace woq::python
