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

// The arrays of a tuned rounding, and what its scheme says of them.
struct Tuned {
  CodePoints points;
  TunedRounding rounding;

  Tuned(const py::object& weight, const py::object& offsets, const py::object& scales,
        const py::object& zeros, const QuantScheme& scheme)
      : points(traits_of(scheme.dtype)) {
    const ArrayRef ref = array_ref(weight, "the weight");
    if (ref.shape.size() != 2) fail("the weight has shape ", shape_text(ref.shape));
    const DtypeTraits& dtype = traits_of(scheme.dtype);
    TunedRounding& r = rounding;
    r.rows = ref.shape[0];
    r.cols = ref.shape[1];
    r.group = group_length(scheme, r.cols);
    r.weight = floats(weight, "the weight", r.rows, r.cols);
    r.offsets = floats(offsets, "offsets", r.rows, r.cols, true);
    r.scales = floats(scales, "scales", r.rows, r.groups());
    if (zeros.is_none() == dtype.is_integer()) {
      fail("zeros are ", dtype.is_integer() ? "missing: " : "given, but ", dtype.name,
           dtype.is_integer() ? " is rounded around them" : " has none");
    }
    if (dtype.is_integer()) {
      r.zeros = floats(zeros, "zeros", r.rows, r.groups());
      r.top = static_cast<float>(dtype.max_code());
    } else {
      r.table = points.values.data();
      r.points = static_cast<int>(points.values.size());
    }
  }
};

void weight(const py::object& weight, const py::object& offsets, const py::object& scales,
            const py::object& zeros, const QuantScheme& scheme, const py::object& out,
            int num_threads) {
  const Tuned tuned(weight, offsets, scales, zeros, scheme);
  const MatrixView view = output_matrix(out, "the rounded weight");
  const py::gil_scoped_release unlocked;
  rounded_weight(tuned.rounding, view, num_threads);
}

py::array_t<uint8_t> codes(const py::object& weight, const py::object& offsets,
                           const py::object& scales, const py::object& zeros,
                           const QuantScheme& scheme, int num_threads) {
  const Tuned tuned(weight, offsets, scales, zeros, scheme);
  py::array_t<uint8_t> array({tuned.rounding.rows, tuned.rounding.cols});
  uint8_t* const out = array.mutable_data();
  const py::gil_scoped_release unlocked;
  rounded_codes(tuned.rounding, tuned.points, out, num_threads);
  return array;
}

void step(const py::object& weight, const py::object& offsets, const py::object& scales,
          const py::object& zeros, const QuantScheme& scheme, const py::object& gradient,
          float rate, const py::object& scale_gradients, const py::object& zero_gradients,
          int num_threads) {
  const Tuned tuned(weight, offsets, scales, zeros, scheme);
  const TunedRounding& r = tuned.rounding;
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
             py::arg("zeros"), py::arg("scheme"), py::kw_only(), py::arg("out"),
             py::arg("num_threads") = 0);
  module.def("rounded_codes", &codes, py::arg("weight"), py::arg("offsets"), py::arg("scales"),
             py::arg("zeros"), py::arg("scheme"), py::kw_only(), py::arg("num_threads") = 0);
  module.def("rounding_step", &step, py::arg("weight"), py::arg("offsets"), py::arg("scales"),
             py::arg("zeros"), py::arg("scheme"), py::kw_only(), py::arg("gradient"),
             py::arg("rate"), py::arg("scale_gradients"), py::arg("zero_gradients"),
             py::arg("num_threads") = 0);
}

}  // namespace woq::python
