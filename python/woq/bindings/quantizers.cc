// SPDX-License-Identifier: Apache-2.0
#include "quantizers.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "getter.h"
#include "options.h"
#include "woq/woq.h"

namespace woq::python {

template <>
struct OptionValue<ActOrder> {
  static py::object show(ActOrder value) {
    return py::str(kActOrderNames[static_cast<int>(value)]);
  }
  static ActOrder read(py::handle value) { return parse_act_order(value.cast<std::string>()); }
};

template <>
struct OptionValue<DuoScaling> {
  static py::object show(DuoScaling value) {
    return py::str(kDuoScalingNames[static_cast<int>(value)]);
  }
  static DuoScaling read(py::handle value) { return parse_duo_scaling(value.cast<std::string>()); }
};

namespace {

// What the functions below take as keyword arguments, beside data.
const OptionFields<GptqOptions> kGptqOptions = {
    option<&GptqOptions::damp>("damp"),
    option<&GptqOptions::damp_increment>("damp_increment"),
    option<&GptqOptions::block_size>("block_size"),
    option<&GptqOptions::act_order>("act_order"),
    option<&GptqOptions::static_groups>("static_groups"),
    option<&GptqOptions::mse_range>("mse_range"),
    option<&GptqOptions::fp64>("fp64"),
    option<&GptqOptions::gptaq_alpha>("gptaq_alpha"),
};
const OptionFields<AwqOptions> kAwqOptions = {
    option<&AwqOptions::n_grid>("n_grid"),
    option<&AwqOptions::duo_scaling>("duo_scaling"),
    option<&AwqOptions::mse_range>("mse_range"),
    option<&AwqOptions::max_rows>("max_rows"),
};
const OptionFields<AwqClipOptions> kAwqClipOptions = {
    option<&AwqClipOptions::n_grid>("n_grid"),
    option<&AwqClipOptions::max_shrink>("max_shrink"),
};
const OptionFields<TeqOptions> kTeqOptions = {
    option<&TeqOptions::steps>("steps"),
    option<&TeqOptions::learning_rate>("learning_rate"),
    option<&TeqOptions::mse_range>("mse_range"),
    option<&TeqOptions::max_rows>("max_rows"),
};
const OptionFields<HqqOptions> kHqqOptions = {
    option<&HqqOptions::lp_norm>("lp_norm"),
    option<&HqqOptions::beta>("beta"),
    option<&HqqOptions::kappa>("kappa"),
    option<&HqqOptions::steps>("steps"),
};

// {function: {option: default}}
py::dict option_defaults() {
  py::dict result;
  result["quantize_gptq"] = default_options(kGptqOptions);
  result["awq_scales"] = default_options(kAwqOptions);
  result["awq_clip"] = default_options(kAwqClipOptions);
  result["teq_scales"] = default_options(kTeqOptions);
  result["quantize_hqq"] = default_options(kHqqOptions);
  return result;
}

py::array_t<double> to_numpy(const Hessian& hessian) {
  py::array_t<double> array({hessian.cols(), hessian.cols()});
  double* const out = array.mutable_data();
  for (int64_t i = 0; i < hessian.cols(); ++i) {
    for (int64_t j = 0; j < hessian.cols(); ++j) out[i * hessian.cols() + j] = hessian.at(i, j);
  }
  return array;
}

// fp32, as quantize_rtn() takes importance.
py::array_t<float> diagonal(const Hessian& hessian) {
  py::array_t<float> array(hessian.cols());
  for (int64_t k = 0; k < hessian.cols(); ++k)
    array.mutable_data()[k] = static_cast<float>(hessian.at(k, k));
  return array;
}

py::array_t<double> magnitudes(const Hessian& hessian) {
  py::array_t<double> array(hessian.cols());
  for (int64_t k = 0; k < hessian.cols(); ++k) array.mutable_data()[k] = hessian.mean_magnitude(k);
  return array;
}

using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

Hessian hessian_from_numpy(const DoubleArray& h, int64_t rows, const py::object& mean_magnitudes,
                           const std::string& name) {
  if (h.ndim() != 2 || h.shape(0) != h.shape(1))
    fail("a Hessian is a square matrix, got an array with ", h.ndim(), " dimensions");
  DoubleArray means;
  if (!mean_magnitudes.is_none()) {
    means = mean_magnitudes.cast<DoubleArray>();
    if (means.ndim() != 1 || means.shape(0) != h.shape(0))
      fail("mean_magnitudes must have ", h.shape(0), " elements");
  }
  return Hessian::from_matrix(h.data(), h.shape(0), rows,
                              mean_magnitudes.is_none() ? nullptr : means.data(), name);
}

QuantizedMatrix gptq(const py::object& weight, const Hessian& hessian, const QuantScheme& scheme,
                     const CrossMoment* cross, const py::object& in_flight,
                     const py::object& ranges, const py::object& facts, const std::string& name,
                     int num_threads, const py::kwargs& given) {
  const ConstMatrixView view = input_matrix(weight, name.c_str());
  GptqOptions options;
  read_options(kGptqOptions, given, &options);
  if (!in_flight.is_none()) {
    const MatrixView out = output_matrix(in_flight, "in_flight");
    if (out.type != FloatType::kFp32 || out.rows != view.rows || out.cols != view.cols ||
        out.row(1) != static_cast<float*>(out.row(0)) + out.cols) {
      fail("in_flight must be a contiguous float32 array of shape [", view.rows, ", ", view.cols,
           "]");
    }
    options.in_flight = static_cast<float*>(out.row(0));
  }
  options.cross = cross;
  options.name = name;
  ConstMatrixView ranges_view;
  if (!ranges.is_none()) {
    ranges_view = input_matrix(ranges, name.c_str());
    options.ranges = &ranges_view;
  }
  GptqResult result;
  {
    const py::gil_scoped_release unlocked;
    result = quantize_gptq(view, hessian, scheme, options, num_threads);
  }
  if (!facts.is_none()) facts["damp"] = result.damp;
  return std::move(result.matrix);
}

py::array_t<float> to_array(const std::vector<float>& values) {
  return py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data());
}

std::vector<ConstMatrixView> input_matrices(const std::vector<py::object>& weights,
                                            const std::string& name) {
  std::vector<ConstMatrixView> views;
  for (const py::object& weight : weights) views.push_back(input_matrix(weight, name.c_str()));
  return views;
}

// One scheme for each weight, or one for all of them.
SharedSchemes shared_schemes(const py::object& schemes) {
  if (py::isinstance<QuantScheme>(schemes)) return schemes.cast<QuantScheme>();
  return SharedSchemes(schemes.cast<std::vector<QuantScheme>>());
}

py::array_t<float> awq_scales(const std::vector<py::object>& weights, const Hessian& hessian,
                              const py::object& schemes, const std::string& name, int num_threads,
                              const py::kwargs& given) {
  const SharedSchemes each = shared_schemes(schemes);
  const std::vector<ConstMatrixView> views = input_matrices(weights, name);
  AwqOptions options;
  read_options(kAwqOptions, given, &options);
  options.name = name;
  AwqResult result;
  {
    const py::gil_scoped_release unlocked;
    result = search_awq_scales(views, hessian, each, options, num_threads);
  }
  return to_array(result.scales);
}

py::array_t<float> awq_clip(const py::object& weight, const Hessian& hessian,
                            const QuantScheme& scheme, const std::string& name, int num_threads,
                            const py::kwargs& given) {
  const ConstMatrixView view = input_matrix(weight, name.c_str());
  AwqClipOptions options;
  read_options(kAwqClipOptions, given, &options);
  options.name = name;
  std::vector<float> clipped;
  {
    const py::gil_scoped_release unlocked;
    clipped = clip_awq(view, hessian, scheme, options, num_threads);
  }
  return py::array_t<float>({view.rows, view.cols}, clipped.data());
}

py::array_t<float> teq_scales(const std::vector<py::object>& weights, const Hessian& hessian,
                              const py::object& schemes, const py::object& start,
                              const std::string& name, int num_threads, const py::kwargs& given) {
  const SharedSchemes each = shared_schemes(schemes);
  const std::vector<ConstMatrixView> views = input_matrices(weights, name);
  TeqOptions options;
  read_options(kTeqOptions, given, &options);
  options.name = name;
  if (!start.is_none()) options.start = float_vector(start, "start");
  TeqResult result;
  {
    const py::gil_scoped_release unlocked;
    result = search_teq_scales(views, hessian, each, options, num_threads);
  }
  return to_array(result.scales);
}

QuantizedMatrix hqq(const py::object& weight, const QuantScheme& scheme, const std::string& name,
                    int num_threads, const py::kwargs& given) {
  const ConstMatrixView view = input_matrix(weight, name.c_str());
  HqqOptions options;
  read_options(kHqqOptions, given, &options);
  options.name = name;
  const py::gil_scoped_release unlocked;
  return quantize_hqq(view, scheme, options, num_threads);
}

// `approximation` is a quantized matrix, or an array.
double layer_error(const py::object& weight, const py::object& approximation,
                   const Hessian& hessian, int num_threads) {
  const ConstMatrixView w = input_matrix(weight, "weight");
  if (py::isinstance<QuantizedMatrix>(approximation)) {
    const auto& matrix = approximation.cast<const QuantizedMatrix&>();
    const py::gil_scoped_release unlocked;
    return relative_layer_error(w, matrix, hessian, num_threads);
  }
  const ConstMatrixView q = input_matrix(approximation, "approximation");
  const py::gil_scoped_release unlocked;
  return relative_layer_error(w, q, hessian, num_threads);
}

}  // namespace

void bind_quantizers(py::module_& module) {
  py::class_<Hessian>(module, "Hessian")
      .def(py::init<int64_t, std::string>(), py::arg("in_features"), py::arg("name") = "layer")
      .def_property_readonly("in_features", getter(&Hessian::cols))
      .def_property_readonly("rows", getter(&Hessian::rows))
      .def_property_readonly("nbytes", getter(&Hessian::bytes))
      .def(
          "add",
          [](Hessian& hessian, const py::object& x, int num_threads) {
            const ConstMatrixView view = input_matrix(x, "the input");
            const py::gil_scoped_release unlocked;
            hessian.add(view, num_threads);
          },
          py::arg("x"), py::arg("num_threads") = 0)
      .def_property_readonly("dead_columns", getter(&Hessian::dead_columns))
      .def("merge", &Hessian::merge, py::arg("other"))
      .def(
          "scaled",
          [](const Hessian& hessian, const py::object& multipliers) {
            return hessian.scaled(float_vector(multipliers, "multipliers"));
          },
          py::arg("multipliers"))
      .def("numpy", &to_numpy)
      .def("diagonal", &diagonal)
      .def("mean_magnitudes", &magnitudes)
      .def_static("from_numpy", &hessian_from_numpy, py::arg("h"), py::arg("rows"),
                  py::arg("mean_magnitudes") = py::none(), py::arg("name") = "layer");
  py::class_<CrossMoment>(module, "CrossMoment")
      .def(py::init<int64_t, std::string>(), py::arg("in_features"), py::arg("name") = "layer")
      .def_property_readonly("in_features", getter(&CrossMoment::cols))
      .def_property_readonly("rows", getter(&CrossMoment::rows))
      .def(
          "add",
          [](CrossMoment& moment, const py::object& x_float, const py::object& x_quantized,
             int num_threads) {
            const ConstMatrixView left = input_matrix(x_float, "the full-precision input");
            const ConstMatrixView right = input_matrix(x_quantized, "the quantized input");
            const py::gil_scoped_release unlocked;
            moment.add(left, right, num_threads);
          },
          py::arg("x_float"), py::arg("x_quantized"), py::arg("num_threads") = 0)
      .def(
          "scaled",
          [](const CrossMoment& moment, const py::object& multipliers) {
            return moment.scaled(float_vector(multipliers, "multipliers"));
          },
          py::arg("multipliers"));
  module.def("option_defaults", &option_defaults);
  module.def("quantize_gptq", &gptq, py::arg("weight"), py::arg("hessian"), py::arg("scheme"),
             py::kw_only(), py::arg("cross") = nullptr, py::arg("in_flight") = py::none(),
             py::arg("ranges") = py::none(), py::arg("facts") = py::none(),
             py::arg("name") = "weight", py::arg("num_threads") = 0);
  module.def("awq_scales", &awq_scales, py::arg("weights"), py::arg("hessian"), py::arg("schemes"),
             py::kw_only(), py::arg("name") = "layer", py::arg("num_threads") = 0);
  module.def("awq_clip", &awq_clip, py::arg("weight"), py::arg("hessian"), py::arg("scheme"),
             py::kw_only(), py::arg("name") = "weight", py::arg("num_threads") = 0);
  module.def("teq_scales", &teq_scales, py::arg("weights"), py::arg("hessian"), py::arg("schemes"),
             py::kw_only(), py::arg("start") = py::none(), py::arg("name") = "layer",
             py::arg("num_threads") = 0);
  module.def("quantize_hqq", &hqq, py::arg("weight"), py::arg("scheme"), py::kw_only(),
             py::arg("name") = "weight", py::arg("num_threads") = 0);
  module.def("layer_error", &layer_error, py::arg("weight"), py::arg("approximation"),
             py::arg("hessian"), py::arg("num_threads") = 0);
}

}  // namespace woq::python
