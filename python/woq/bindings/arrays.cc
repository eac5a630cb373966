// SPDX-License-Identifier: Apache-2.0
#include "arrays.h"

#include <utility>

namespace woq::python {

namespace {

// torch's dtype objects are singletons: comparing addresses is the cheapest test.
struct TorchDtypes {
  std::vector<std::pair<PyObject*, ElementType>> known;

  TorchDtypes() {
    const py::module_ torch = py::module_::import("torch");
    for (const ElementType type : kTensorTypes) {
      if (py::hasattr(torch, name_of(type)))
        known.emplace_back(torch.attr(name_of(type)).ptr(), type);
    }
  }
};

const TorchDtypes& torch_dtypes() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<TorchDtypes> storage;
  return storage.call_once_and_store_result([] { return TorchDtypes(); }).get_stored();
}

[[noreturn]] void fail_dtype(const char* what, const std::string& dtype) {
  fail(what, " has dtype ", dtype,
       "; supported: float32, float16, bfloat16 (and, for stored tensors, uint8, uint16, int8, int32, int64)");
}

ArrayRef from_numpy(const py::array& array, const char* what) {
  ArrayRef ref;
  const py::dtype dtype = array.dtype();
  const std::string name = py::str(dtype.attr("name"));
  bool known = false;
  for (const ElementType type : kTensorTypes) {
    if (name == name_of(type)) {
      ref.type = type;
      known = true;
    }
  }
  if (!known) fail_dtype(what, name);
  if (!py::cast<bool>(dtype.attr("isnative")))
    fail(what, " is in foreign byte order; convert it with .astype('", name, "')");
  ref.data = const_cast<void*>(array.data());
  ref.writable = array.writeable();
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    ref.shape.push_back(array.shape(i));
    if (array.strides(i) % size_of(ref.type) != 0)
      fail(what, " has strides that are no multiple of its element size");
    ref.strides.push_back(array.strides(i) / size_of(ref.type));
  }
  return ref;
}

ArrayRef from_tensor(py::handle tensor, const char* what) {
  if (!py::cast<bool>(tensor.attr("is_cpu"))) {
    fail(what, " lies on device '", std::string(py::str(tensor.attr("device"))),
         "'; woq computes on the CPU: move it with .to('cpu')");
  }
  ArrayRef ref;
  const py::object dtype = tensor.attr("dtype");
  bool known = false;
  for (const auto& [object, type] : torch_dtypes().known) {
    if (dtype.ptr() == object) {
      ref.type = type;
      known = true;
    }
  }
  if (!known) fail_dtype(what, py::str(dtype));
  ref.data = reinterpret_cast<void*>(py::cast<uintptr_t>(tensor.attr("data_ptr")()));
  const py::tuple shape = tensor.attr("shape"), strides = tensor.attr("stride")();
  for (py::handle extent : shape) ref.shape.push_back(py::cast<int64_t>(extent));
  for (py::handle stride : strides) ref.strides.push_back(py::cast<int64_t>(stride));
  return ref;
}

FloatType float_type(const ArrayRef& ref, const char* what) {
  switch (ref.type) {
    case ElementType::kFp32: return FloatType::kFp32;
    case ElementType::kFp16: return FloatType::kFp16;
    case ElementType::kBf16: return FloatType::kBf16;
    default:
      fail(what, " has dtype ", name_of(ref.type), "; supported: float32, float16, bfloat16");
  }
}

MatrixView matrix_view(const ArrayRef& ref, const char* what) {
  if (ref.shape.size() != 2)
    fail(what, " has shape ", shape_text(ref.shape), "; expected a 2-D array");
  if (ref.shape[1] > 1 && ref.strides[1] != 1) {
    fail(what, " has a column stride of ", ref.strides[1],
         "; rows must be contiguous: pass a contiguous copy");
  }
  return {ref.data, float_type(ref, what), ref.shape[0], ref.shape[1], ref.strides[0]};
}

}  // namespace

bool ArrayRef::contiguous() const {
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] > 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

ArrayRef array_ref(py::handle object, const char* what) {
  if (py::isinstance<py::array>(object))
    return from_numpy(py::reinterpret_borrow<py::array>(object), what);
  if (py::hasattr(object, "data_ptr")) return from_tensor(object, what);
  fail(what, " is a ", std::string(py::str(py::type::handle_of(object).attr("__name__"))),
       "; expected a numpy array or a torch tensor");
}

ConstMatrixView input_matrix(py::handle object, const char* what) {
  return matrix_view(array_ref(object, what), what);
}

MatrixView output_matrix(py::handle object, const char* what) {
  const ArrayRef ref = array_ref(object, what);
  if (!ref.writable) fail(what, " is read-only");
  return matrix_view(ref, what);
}

std::vector<float> float_vector(py::handle object, const char* what) {
  const ArrayRef ref = array_ref(object, what);
  if (ref.shape.size() != 1)
    fail(what, " has shape ", shape_text(ref.shape), "; expected a 1-D array");
  const FloatType type = float_type(ref, what);
  std::vector<float> values(static_cast<size_t>(ref.shape[0]));
  for (size_t i = 0; i < values.size(); ++i) {
    const char* element = static_cast<const char*>(ref.data) +
                          static_cast<int64_t>(i) * ref.strides[0] * woq::size_of(type);
    load_floats(element, type, 1, &values[i]);
  }
  return values;
}

std::vector<float> float_matrix(py::handle object, const char* what, int64_t rows, int64_t cols) {
  const ConstMatrixView view = input_matrix(object, what);
  if (view.rows != rows || view.cols != cols)
    fail(what, " has shape [", view.rows, ", ", view.cols, "], expected [", rows, ", ", cols, "]");
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (int64_t n = 0; n < rows; ++n)
    load_floats(view.row(n), view.type, cols, values.data() + n * cols);
  return values;
}

}  // namespace woq::python
