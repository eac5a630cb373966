// SPDX-License-Identifier: Apache-2.0
// The extension module woq._woq. Its contract is written down in ../_woq.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "containers.h"
#include "foreign.h"
#include "foreign_writers.h"
#include "getter.h"
#include "imatrix.h"
#include "portable.h"
#include "quantized.h"
#include "quantizers.h"
#include "rounding.h"
#include "scheme.h"
#include "woq/woq.h"

namespace woq::python {

namespace {

std::unique_ptr<WeightOnlyLinear> make_linear(const QuantizedMatrix& weight, const py::object& bias,
                                              const std::string& compute_dtype,
                                              const std::string& name, int num_threads) {
  const ComputeRequest compute = parse_compute_request(compute_dtype);
  std::vector<float> bias_values;
  if (!bias.is_none()) bias_values = float_vector(bias, "bias");
  const py::gil_scoped_release unlocked;
  return std::make_unique<WeightOnlyLinear>(weight, bias_values, compute, name, num_threads);
}

void forward(const WeightOnlyLinear& layer, const py::object& x, const py::object& out,
             int num_threads) {
  const ConstMatrixView input = input_matrix(x, "the input");
  const MatrixView output = output_matrix(out, "the output");
  const py::gil_scoped_release unlocked;
  layer.forward(input, output, num_threads);
}

void gather(const WeightOnlyLinear& layer, const py::object& ids, const py::object& out,
            int num_threads) {
  const ArrayRef ref = array_ref(ids, "ids");
  if (ref.type != ElementType::kInt64 || ref.shape.size() != 1 || !ref.contiguous()) {
    fail("ids must be a contiguous int64 array of one dimension, got ", name_of(ref.type), " ",
         shape_text(ref.shape));
  }
  const MatrixView output = output_matrix(out, "the output");
  if (output.rows != ref.shape[0])
    fail("the output has ", output.rows, " rows for ", ref.shape[0], " ids");
  const py::gil_scoped_release unlocked;
  gather_rows(layer.weight(), static_cast<const int64_t*>(ref.data), output, num_threads);
}

// (layer, out[, residual or None[, up or None]])
LinearOutput linear_output(const py::handle& item) {
  const auto parts = item.cast<py::sequence>();
  if (parts.size() < 2 || parts.size() > 4)
    fail("an output is (layer, out), (layer, out, residual) or (layer, out, residual, up), got ",
         parts.size(), " items");
  LinearOutput output;
  const py::object layer = parts[0];
  if (!py::isinstance<WeightOnlyLinear>(layer)) {
    fail("an output's layer is a ", std::string(py::str(py::type::of(layer).attr("__name__"))),
         "; expected a Linear");
  }
  output.layer = &layer.cast<const WeightOnlyLinear&>();
  output.y = output_matrix(parts[1], "the output");
  if (parts.size() > 2 && !parts[2].is_none())
    output.residual = input_matrix(parts[2], "the residual");
  if (parts.size() > 3 && !parts[3].is_none()) output.up = input_matrix(parts[3], "the factor up");
  return output;
}

void shared_forward(const py::object& x, const py::sequence& outputs, int num_threads) {
  const ConstMatrixView input = input_matrix(x, "the input");
  std::vector<LinearOutput> list;
  for (const py::handle& item : outputs) list.push_back(linear_output(item));
  const py::gil_scoped_release unlocked;
  forward_shared(input, list, num_threads);
}

void gated_forward(const py::object& x, const WeightOnlyLinear& gate, const WeightOnlyLinear& up,
                   const py::object& out, int num_threads) {
  const ConstMatrixView input = input_matrix(x, "the input");
  const MatrixView output = output_matrix(out, "the output");
  const py::gil_scoped_release unlocked;
  forward_gated(input, gate, up, output, num_threads);
}

// Rows are batch x tokens; what the arrays don't say of the shape is in the other arguments.
void attend(const py::object& q, const py::object& k, const py::object& v, const py::object& out,
            int64_t batch, int64_t heads, int64_t kv_heads, float scale, bool causal,
            int num_threads) {
  const ConstMatrixView queries = input_matrix(q, "q"), keys = input_matrix(k, "k");
  const ConstMatrixView values = input_matrix(v, "v");
  const MatrixView output = output_matrix(out, "the output");
  if (batch < 1 || heads < 1) fail("attention needs a batch and heads, got ", batch, ", ", heads);
  if (queries.cols % heads != 0)
    fail("q has ", queries.cols, " columns, which is no multiple of ", heads, " heads");
  if (queries.rows % batch != 0)
    fail("q has ", queries.rows, " rows, which is no multiple of a batch of ", batch);
  ops::AttentionShape shape;
  shape.batch = batch;
  shape.queries = queries.rows / batch;
  shape.keys = keys.rows / batch;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = queries.cols / heads;
  shape.scale = scale;
  shape.causal = causal;
  const py::gil_scoped_release unlocked;
  ops::attention(shape, queries, keys, values, output, num_threads);
}

py::dict explain(const WeightOnlyLinear& layer) {
  const PackedMatrix& weight = layer.weight();
  const KernelChoice& choice = layer.choice();
  py::list considered;
  for (const ConsideredTarget& entry : choice.considered) {
    py::dict item;
    item["target"] = name_of(entry.target);
    item["why"] = entry.why;
    considered.append(item);
  }
  py::dict result;
  result["name"] = layer.name();
  result["kernel"] = choice.kernel->name;
  result["target"] = name_of(choice.kernel->target);
  result["compute_dtype"] = name_of(choice.kernel->compute);
  result["compute_reason"] = choice.compute_why;
  result["weight"] = weight.dtype().name;
  result["group_size"] = weight.scheme.group_size;
  result["layout"] = concat(kLayoutName, " v", weight.layout_version);
  result["packed_bytes"] = weight.bytes();
  result["reason"] = choice.considered.back().why;
  result["forced"] =
      choice.forced.empty() ? py::object(py::none()) : py::object(py::str(choice.forced));
  result["considered"] = considered;
  result["threads"] = in_forked_child() ? "1 (a forked child has no thread pool)"
                                        : std::to_string(usable_threads());
  return result;
}

py::dict cpu_info() {
  py::dict feature_map;
  for (int i = 0; i < kCpuFeatureCount; ++i)
    feature_map[kCpuFeatureNames[i]] = (cpu_features() >> i & 1u) != 0;
  py::dict info;
  info["brand"] = cpu_brand();
  info["features"] = feature_map;
  info["logical_cpus"] = omp_get_num_procs();
  info["usable_threads"] = usable_threads();
  info["forked_child"] = in_forked_child();
  info["forced_target"] =
      forced_target().empty() ? py::object(py::none()) : py::object(py::str(forced_target()));
  return info;
}

// How many of `wanted` threads a brief team may have now, on a machine that other programs use as
// well.
int allowed_threads(int wanted) {
  if (wanted < 1) fail("at least 1 thread is needed, got ", wanted);
  return team_limit().allowed(wanted, TeamLimit::Clock::now());
}

// OpenMP's number for the calling thread: torch reads it in each of its operations, woq in each of
// its own. torch.set_num_threads() would set what threads to come begin with, too.
void set_calling_threads(int threads) {
  if (threads < 1) fail("at least 1 thread is needed, got ", threads);
  omp_set_num_threads(threads);
}

py::list targets() {
  py::list list;
  for (const TargetTraits& target : kTargets) {
    py::dict item;
    item["name"] = target.name;
    const CpuFeatureSet missing = target.required & ~cpu_features();
    item["available"] = missing == 0 && is_built(target.target);
    item["missing"] = missing != 0              ? names_of(missing)
                      : is_built(target.target) ? ""
                                                : "not in this build";
    list.append(item);
  }
  return list;
}

py::dict build_info() {
  py::dict info;
  info["version"] = WOQ_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["openmp"] = _OPENMP;
  const std::string onednn = onednn_version();
  info["onednn"] = onednn.empty() ? py::object(py::none()) : py::object(py::str(onednn));
  return info;
}

}  // namespace

PYBIND11_MODULE(_woq, module) {
  find_openmp();
  module.doc() = "Weight-only quantization for CPUs: the C++ core of woq.";
  py::register_exception<InvalidArgument>(module, "InvalidArgument", PyExc_ValueError);
  py::register_exception<Unsupported>(module, "Unsupported", PyExc_RuntimeError);

  module.def("compute_dtype_names", [] {
    return std::vector<std::string>(std::begin(kComputeTypeNames), std::end(kComputeTypeNames));
  });
  module.def(
      "check_compute_dtype", [](const std::string& name) { parse_compute_request(name); },
      py::arg("compute_dtype"));
  bind_scheme(module);
  bind_quantized(module);
  bind_quantizers(module);
  bind_rounding(module);
  bind_containers(module);
  bind_foreign(module);
  bind_foreign_writers(module);
  bind_imatrix(module);

  py::class_<WeightOnlyLinear>(module, "Linear")
      .def(py::init(&make_linear), py::arg("weight"), py::arg("bias") = py::none(),
           py::arg("compute_dtype") = "fp32", py::arg("name") = "", py::arg("num_threads") = 0)
      .def_property_readonly("in_features", getter(&WeightOnlyLinear::in_features))
      .def_property_readonly("out_features", getter(&WeightOnlyLinear::out_features))
      .def_property_readonly("has_bias", getter(&WeightOnlyLinear::has_bias))
      .def_property_readonly("nbytes", [](const WeightOnlyLinear& l) { return l.weight().bytes(); })
      .def_property_readonly("scheme", [](const WeightOnlyLinear& l) { return l.weight().scheme; })
      .def_property_readonly(
          "has_g_idx", [](const WeightOnlyLinear& l) { return l.weight().input_order.size() > 0; })
      .def_property_readonly(
          "has_act_scales",
          [](const WeightOnlyLinear& l) { return l.weight().act_scales.size() > 0; })
      .def_property_readonly("compute_dtype",
                             [](const WeightOnlyLinear& l) { return name_of(l.kernel().compute); })
      .def_property_readonly("requested_compute_dtype",
                             [](const WeightOnlyLinear& l) { return l.compute_request().name(); })
      .def("forward", &forward, py::arg("x"), py::arg("out"), py::arg("num_threads") = 0)
      .def("gather", &gather, py::arg("ids"), py::arg("out"), py::arg("num_threads") = 0)
      .def(
          "unpack", [](const WeightOnlyLinear& l) { return unpack(l.weight()); },
          py::call_guard<py::gil_scoped_release>())
      .def("explain", &explain)
      .def("__repr__", [](const WeightOnlyLinear& l) {
        return concat("Linear(in_features=", l.in_features(), ", out_features=", l.out_features(),
                      ", ", l.weight().dtype().name, ", kernel=", l.kernel().name, ")");
      });

  module.def("forward_shared", &shared_forward, py::arg("x"), py::arg("outputs"),
             py::arg("num_threads") = 0);
  module.def("forward_gated", &gated_forward, py::arg("x"), py::arg("gate"), py::arg("up"),
             py::arg("out"), py::arg("num_threads") = 0);
  module.def("attention", &attend, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
             py::arg("batch"), py::arg("heads"), py::arg("kv_heads"), py::arg("scale"),
             py::arg("causal") = false, py::arg("num_threads") = 0);
  module.def("has_bf16_products", &has_bf16_products);
  module.attr("MAX_HEAD_DIM") = ops::kMaxHeadDim;
  module.def("cpu_info", &cpu_info);
  module.def("allowed_threads", &allowed_threads, py::arg("wanted"));
  module.def("set_calling_threads", &set_calling_threads, py::arg("threads"));
  module.def("enter_forked_child", [] { woq::detail::forked.store(true); });
  module.def("targets", &targets);
  module.def("build_info", &build_info);
}

}  // namespace woq::python
