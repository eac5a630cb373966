// SPDX-License-Identifier: Apache-2.0
#include "arrays.h"

#include <cstdlib>
#include <utility>

namespace woq::python {

namespace {

// What is asked of a tensor, as interned names: a call of a layer asks two or three tensors.
struct TensorNames {
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* untyped_storage = PyUnicode_InternFromString("untyped_storage");
  PyObject* storage_offset = PyUnicode_InternFromString("storage_offset");
  PyObject* nbytes = PyUnicode_InternFromString("nbytes");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
};

// torch's dtype objects are singletons: comparing addresses is the cheapest test.
struct Torch {
  std::vector<std::pair<PyObject*, ElementType>> dtypes;
  py::object tensor_type;
  TensorNames names;

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    tensor_type = torch.attr("Tensor");
    for (const ElementType type : kTensorTypes) {
      if (py::hasattr(torch, name_of(type)))
        dtypes.emplace_back(torch.attr(name_of(type)).ptr(), type);
    }
  }
};

const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> storage;
  return storage.call_once_and_store_result([] { return Torch(); }).get_stored();
}

// Throws what Python raised.
py::object checked(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

py::object attribute(py::handle object, PyObject* name) {
  return checked(PyObject_GetAttr(object.ptr(), name));
}

py::object call(py::handle object, PyObject* name) {
  return checked(PyObject_CallMethodNoArgs(object.ptr(), name));
}

std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

[[noreturn]] void fail_dtype(const char* what, const std::string& dtype) {
  fail(what, " has dtype ", dtype,
       "; supported: float32, float16, bfloat16 (and, for stored tensors, uint8, uint16, int8, "
       "int32, "
       "int64)");
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

// A freed storage (as FSDP and offloading leave it) has the address 0, and so have fake, functional
// and other tensors that only stand for values; some of them refuse to tell an address.
[[noreturn]] void fail_without_memory(py::handle tensor, const ArrayRef& ref, const char* what,
                                      const std::string& why) {
  fail(what, " is a ", type_name(tensor), " of shape ", shape_text(ref.shape),
       " that has no values in memory (", why,
       "); load it, gather its shards or leave the fake-tensor mode first");
}

void* address_of(py::handle tensor, const ArrayRef& ref, const char* what) {
  try {
    return reinterpret_cast<void*>(py::cast<uintptr_t>(call(tensor, torch().names.data_ptr)));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    const std::string text = py::str(error.value());
    fail_without_memory(tensor, ref, what, text.substr(0, text.find('\n')));
  }
}

// Throws InvalidArgument unless every element of the tensor lies in its storage.
void check_memory(py::handle tensor, const ArrayRef& ref, const char* what) {
  if (ref.size() == 0) return;
  if (ref.data == nullptr) fail_without_memory(tensor, ref, what, "its address is 0");
  const TensorNames& names = torch().names;
  const auto offset = py::cast<int64_t>(call(tensor, names.storage_offset));
  const auto bytes = py::cast<int64_t>(call(call(tensor, names.untyped_storage), names.nbytes));
  int64_t last = offset;
  for (size_t i = 0; i < ref.shape.size(); ++i) last += (ref.shape[i] - 1) * ref.strides[i];
  const int64_t needed = (last + 1) * size_of(ref.type);
  if (needed > bytes)
    fail_without_memory(tensor, ref, what,
                        concat("it needs ", needed, " bytes of a storage of ", bytes));
}

ArrayRef from_tensor(py::handle tensor, const char* what) {
  const TensorNames& names = torch().names;
  if (!py::cast<bool>(attribute(tensor, names.is_cpu))) {
    const std::string device = py::str(tensor.attr("device"));
    fail(what, " lies on device '", device, "'; ",
         device == "meta" ? "meta tensors have no values: load the model's weights first"
                          : "woq computes on the CPU: move it with .to('cpu')");
  }
  ArrayRef ref;
  const py::object dtype = attribute(tensor, names.dtype);
  bool known = false;
  for (const auto& [object, type] : torch().dtypes) {
    if (dtype.ptr() == object) {
      ref.type = type;
      known = true;
    }
  }
  if (!known) fail_dtype(what, py::str(dtype));
  const py::tuple shape = attribute(tensor, names.shape), strides = call(tensor, names.stride);
  for (py::handle extent : shape) ref.shape.push_back(py::cast<int64_t>(extent));
  for (py::handle stride : strides) ref.strides.push_back(py::cast<int64_t>(stride));
  ref.data = address_of(tensor, ref, what);
  check_memory(tensor, ref, what);
  if (py::cast<bool>(call(tensor, names.is_neg)))
    fail(what, " is a negated view, whose memory holds other values; pass .resolve_neg()");
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
  // Asked first, so that torch is imported only where something may be its tensor.
  if (py::hasattr(object, "data_ptr") && py::isinstance(object, torch().tensor_type))
    return from_tensor(object, what);
  fail(what, " is a ", type_name(object), "; expected a numpy array or a torch tensor");
}

ConstMatrixView input_matrix(py::handle object, const char* what) {
  return matrix_view(array_ref(object, what), what);
}

MatrixView output_matrix(py::handle object, const char* what) {
  const ArrayRef ref = array_ref(object, what);
  if (!ref.writable) fail(what, " is read-only");
  const MatrixView view = matrix_view(ref, what);
  if (view.rows > 1 && std::abs(view.row_stride) < view.cols) {
    fail(what, " has rows that overlap (a row stride of ", view.row_stride, ", ", view.cols,
         " columns): pass memory of its own for each row");
  }
  return view;
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
