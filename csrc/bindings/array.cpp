// SPDX-License-Identifier: BSD-3-Clause
#include "array.h"

#include <string>
#include <unordered_map>

#include "../validate.h"

namespace pyparareal::bindings {
namespace {

enum class Protocol { exchange, numpy, dlpack, cuda_interface, none };

// How arrays of one Python type are read. Kept for the life of the process: types are few.
struct Reader {
  Protocol protocol = Protocol::none;
  const DLPackExchangeAPI* exchange = nullptr;
  bool knows_grad = false;
  bool torch = false;  // has a negative bit and a version
  PyCFunction is_neg = nullptr;
  const char* hides = nullptr;  // why the memory of this type is not the values of the array
};

[[noreturn]] void wrong_type(const char* argument, py::handle object) {
  throw py::type_error(std::string(argument) + ": got " + Py_TYPE(object.ptr())->tp_name +
                       ", expected a NumPy, CuPy or torch array, or an object with __dlpack__");
}

[[noreturn]] void wrong_dtype(const char* argument, const std::string& dtype) {
  throw py::type_error(std::string(argument) + ": got dtype " + dtype +
                       ", expected float64, float32, float16 or bfloat16");
}

const DLPackExchangeAPI* exchange_of(py::handle type) {
  if (!py::hasattr(type, "__dlpack_c_exchange_api__")) return nullptr;
  py::object capsule = type.attr("__dlpack_c_exchange_api__");
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* header = static_cast<DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header && header->version.major != DLPACK_MAJOR_VERSION) header = header->prev_api;
  auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  return api && api->dltensor_from_py_object_no_sync ? api : nullptr;
}

// Types whose memory would be read without error, and wrongly.
const char* hides(py::handle object) {
  PyObject* masked = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy.ma");
  if (masked && py::isinstance(object, py::handle(masked).attr("MaskedArray")))
    return "expected an array without a mask: call .filled()";
  if (py::hasattr(object, "fake_mode")) return "expected a real array, not one that is being traced";
  return nullptr;
}

Reader reader_of(py::handle object) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())));
  Reader reader;
  reader.knows_grad = py::hasattr(object, "requires_grad");
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  reader.torch = torch && py::isinstance(object, py::handle(torch).attr("Tensor"));
  if (reader.torch) {
    // Called several times per op: the C method itself saves the attribute look-up.
    const py::object method = type.attr("is_neg");
    if (Py_TYPE(method.ptr()) == &PyMethodDescr_Type) {
      const PyMethodDef* def = reinterpret_cast<PyMethodDescrObject*>(method.ptr())->d_method;
      if (def->ml_flags == METH_NOARGS) reader.is_neg = def->ml_meth;
    }
  }
  reader.hides = hides(object);
  reader.exchange = exchange_of(type);
  if (reader.exchange)
    reader.protocol = Protocol::exchange;
  else if (py::isinstance<py::array>(object))
    reader.protocol = Protocol::numpy;
  else if (py::hasattr(type, "__dlpack__"))
    reader.protocol = Protocol::dlpack;
  else if (py::hasattr(object, "__cuda_array_interface__"))
    reader.protocol = Protocol::cuda_interface;
  return reader;
}

const Reader& cached_reader(py::handle object) {
  // The last type is remembered: a call's arguments are nearly always of one type.
  static std::unordered_map<PyTypeObject*, Reader> readers;
  static PyTypeObject* last_type = nullptr;
  static const Reader* last_reader = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == last_type) return *last_reader;
  auto found = readers.find(type);
  if (found == readers.end()) {
    found = readers.emplace(type, reader_of(object)).first;
    Py_INCREF(type);  // the address must not be reused by another type
  }
  last_type = type;
  last_reader = &found->second;
  return *last_reader;
}

void refuse_grad(py::handle object, const char* argument) {
  static PyObject* name = PyUnicode_InternFromString("requires_grad");
  PyObject* flag = PyObject_GetAttr(object.ptr(), name);
  if (!flag) throw py::error_already_set();
  const bool requires_grad = flag == Py_True;
  Py_DECREF(flag);
  if (requires_grad)
    throw py::value_error(std::string(argument) +
                          ": requires grad, expected a detached tensor: call .detach(), or use the differentiable "
                          "torch.ops.pyparareal ops");
}

// torch's lazy negation (an .imag of a .conj()) is a bit beside the memory.
void refuse_negative(py::handle object, const Reader& reader, const char* argument) {
  static PyObject* name = PyUnicode_InternFromString("is_neg");
  PyObject* flag = reader.is_neg ? reader.is_neg(object.ptr(), nullptr) : PyObject_CallMethodNoArgs(object.ptr(), name);
  if (!flag) throw py::error_already_set();
  const bool negative = flag == Py_True;
  Py_DECREF(flag);
  if (negative)
    throw py::value_error(
        std::string(argument) +
        ": has its negative bit set, expected a tensor that holds its own values: call .resolve_neg()");
}

void refuse_misaligned(const MutableView& view, const char* argument) {
  const auto item = static_cast<uintptr_t>(validate::item_bytes(view.dtype));
  if (reinterpret_cast<uintptr_t>(view.data) % item != 0)
    throw py::value_error(std::string(argument) + ": is not aligned to its item size of " + std::to_string(item) +
                          " bytes, expected an aligned array");
}

DType dtype_of(const DLDataType& type, const char* argument) {
  if (type.lanes == 1 && type.code == kDLFloat) {
    if (type.bits == 64) return DType::float64;
    if (type.bits == 32) return DType::float32;
    if (type.bits == 16) return DType::float16;
  }
  if (type.lanes == 1 && type.code == kDLBfloat && type.bits == 16) return DType::bfloat16;
  if (type.lanes == 1 && type.code == kDLInt && type.bits == 64) return DType::int64;
  static const char* kinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  wrong_dtype(argument,
              (type.code < 7 ? kinds[type.code] : "of DLPack code " + std::to_string(type.code) + " and bits ") +
                  std::to_string(type.bits));
}

void set_device(MutableView& view, const DLDevice& device, const char* argument) {
  const bool host = device.device_type == kDLCPU || device.device_type == kDLCUDAHost;
  if (!host && device.device_type != kDLCUDA && device.device_type != kDLCUDAManaged)
    throw py::value_error(std::string(argument) + ": got DLPack device type " + std::to_string(device.device_type) +
                          ", expected a CPU or CUDA array");
  view.device = host ? Device::cpu : Device::cuda;
  view.device_id = host ? 0 : device.device_id;
}

void set_ndim(MutableView& view, int64_t ndim, const char* argument) {
  if (ndim < 1 || ndim > max_ndim)
    throw py::value_error(std::string(argument) + ": got " + std::to_string(ndim) + " axes, expected 1 to " +
                          std::to_string(max_ndim) + ": [slices, batch, features...]");
  view.ndim = static_cast<int32_t>(ndim);
}

void set_dense_strides(MutableView& view) {
  int64_t stride = 1;
  for (int axis = view.ndim - 1; axis >= 0; --axis) {
    view.stride[axis] = stride;
    stride *= view.shape[axis];
  }
}

void refuse_no_data(const MutableView& view, const char* argument) {
  if (view.data) return;
  for (int axis = 0; axis < view.ndim; ++axis)
    if (view.shape[axis] == 0) return;
  throw py::value_error(std::string(argument) + ": has no data (a meta or fake tensor), expected a real array");
}

void read_tensor(const DLTensor& tensor, MutableView& view, const char* argument) {
  view.dtype = dtype_of(tensor.dtype, argument);
  set_device(view, tensor.device, argument);
  set_ndim(view, tensor.ndim, argument);
  view.data = tensor.data ? static_cast<char*>(tensor.data) + tensor.byte_offset : nullptr;
  for (int axis = 0; axis < tensor.ndim; ++axis) view.shape[axis] = tensor.shape[axis];
  if (tensor.strides)
    for (int axis = 0; axis < tensor.ndim; ++axis) view.stride[axis] = tensor.strides[axis];
  else
    set_dense_strides(view);
  refuse_no_data(view, argument);
  refuse_misaligned(view, argument);
}

// A protocol method failed: say which argument, keep the first line of the producer's reason (torch
// appends its C++ stack).
[[noreturn]] void producer_failed(const char* argument, const py::error_already_set& error) {
  const std::string reason = py::str(error.value());
  throw py::type_error(std::string(argument) + ": cannot be read as an array: " + reason.substr(0, reason.find('\n')));
}

Array from_exchange(py::handle object, const Reader& reader, const char* argument) {
  Array array;
  array.exchange = reader.exchange;
  DLTensor tensor;
  if (reader.exchange->dltensor_from_py_object_no_sync(object.ptr(), &tensor) != 0)
    producer_failed(argument, py::error_already_set());
  read_tensor(tensor, array.view, argument);
  return array;
}

DType numpy_dtype(const py::array& source, const char* argument) {
  static const int bfloat16_unseen = -1;
  static int bfloat16_number = bfloat16_unseen;  // ml_dtypes registers bfloat16 with NumPy at run time
  const py::dtype dtype = source.dtype();
  const int number = dtype.num();
  if (dtype.byteorder() == '=' || dtype.byteorder() == '|') {
    if (number == py::detail::npy_api::NPY_DOUBLE_) return DType::float64;
    if (number == py::detail::npy_api::NPY_FLOAT_) return DType::float32;
    if (number == 23) return DType::float16;  // NPY_HALF
    if (number == bfloat16_number) return DType::bfloat16;
    if (dtype.kind() == 'i' && dtype.itemsize() == 8) return DType::int64;
    if (std::string(py::str(dtype)) == "bfloat16") {
      bfloat16_number = number;
      return DType::bfloat16;
    }
  }
  wrong_dtype(argument, py::str(dtype));
}

Array from_numpy(py::handle object, const char* argument) {
  const auto source = py::reinterpret_borrow<py::array>(object);
  Array array;
  array.view.dtype = numpy_dtype(source, argument);
  set_ndim(array.view, source.ndim(), argument);
  array.read_only = !source.writeable();
  array.view.data = const_cast<void*>(source.data());
  const auto item = static_cast<int64_t>(validate::item_bytes(array.view.dtype));
  for (int axis = 0; axis < array.view.ndim; ++axis) {
    array.view.shape[axis] = source.shape(axis);
    array.view.stride[axis] = source.strides(axis) / item;
    if (source.strides(axis) % item != 0)
      throw py::value_error(std::string(argument) + ": got a stride of " + std::to_string(source.strides(axis)) +
                            " bytes, expected a multiple of the item size " + std::to_string(item));
  }
  refuse_misaligned(array.view, argument);
  return array;
}

// Producers on CUDA are asked not to synchronise (stream -1): the op runs on the caller's stream.
py::object export_dlpack(py::handle object, const char* argument) {
  py::dict keywords;
  keywords["max_version"] = py::make_tuple(DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION);
  try {
    const auto device = py::tuple(object.attr("__dlpack_device__")());
    const int type = device[0].cast<int>();
    if (type == kDLCUDA || type == kDLCUDAManaged) keywords["stream"] = -1;
    try {
      return object.attr("__dlpack__")(**keywords);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;  // TypeError: a producer older than max_version
      keywords.attr("pop")("max_version");
      return object.attr("__dlpack__")(**keywords);
    }
  } catch (py::error_already_set& error) {
    producer_failed(argument, error);
  }
}

Array from_dlpack(py::handle object, const char* argument) {
  Array array;
  array.owner = export_dlpack(object, argument);
  PyObject* capsule = array.owner.ptr();
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    array.read_only = (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0;
    array.copied = (managed->flags & DLPACK_FLAG_BITMASK_IS_COPIED) != 0;
    read_tensor(managed->dl_tensor, array.view, argument);
  } else if (PyCapsule_IsValid(capsule, "dltensor")) {
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    read_tensor(managed->dl_tensor, array.view, argument);
  } else {
    wrong_type(argument, object);
  }
  return array;
}

Array from_cuda_interface(py::handle object, const char* argument) {
  Array array;
  const auto fields = py::dict(object.attr("__cuda_array_interface__"));
  const auto typestr = fields["typestr"].cast<std::string>();
  if (typestr == "<f8")
    array.view.dtype = DType::float64;
  else if (typestr == "<f4")
    array.view.dtype = DType::float32;
  else if (typestr == "<f2")
    array.view.dtype = DType::float16;
  else if (typestr == "<i8")
    array.view.dtype = DType::int64;
  else
    wrong_dtype(argument, typestr);
  const auto data = py::tuple(fields["data"]);
  array.view.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
  array.read_only = data[1].cast<bool>();
  array.view.device = Device::cuda;
  array.view.device_id = py::hasattr(object, "device") && py::hasattr(object.attr("device"), "id")
                             ? object.attr("device").attr("id").cast<int>()
                             : 0;
  const auto shape = py::tuple(fields["shape"]);
  set_ndim(array.view, static_cast<int64_t>(shape.size()), argument);
  for (int axis = 0; axis < array.view.ndim; ++axis) array.view.shape[axis] = shape[axis].cast<int64_t>();
  if (fields.contains("strides") && !fields["strides"].is_none()) {
    const auto strides = py::tuple(fields["strides"]);
    const auto item = static_cast<int64_t>(validate::item_bytes(array.view.dtype));
    for (int axis = 0; axis < array.view.ndim; ++axis) array.view.stride[axis] = strides[axis].cast<int64_t>() / item;
  } else {
    set_dense_strides(array.view);
  }
  refuse_no_data(array.view, argument);
  return array;
}

// Of any dtype, indices included.
Array borrow_any(py::handle object, const char* argument) {
  const Reader& reader = cached_reader(object);
  if (reader.hides)
    throw py::type_error(std::string(argument) + ": got " + Py_TYPE(object.ptr())->tp_name + ", " + reader.hides);
  if (reader.knows_grad) refuse_grad(object, argument);
  if (reader.torch) refuse_negative(object, reader, argument);
  switch (reader.protocol) {
    case Protocol::exchange:
      return from_exchange(object, reader, argument);
    case Protocol::numpy:
      return from_numpy(object, argument);
    case Protocol::dlpack:
      return from_dlpack(object, argument);
    case Protocol::cuda_interface:
      return from_cuda_interface(object, argument);
    default:
      wrong_type(argument, object);
  }
}

}  // namespace

ConstView Array::input() const {
  ConstView result;
  result.data = view.data;
  result.dtype = view.dtype;
  result.device = view.device;
  result.device_id = view.device_id;
  result.ndim = view.ndim;
  for (int axis = 0; axis < view.ndim; ++axis) {
    result.shape[axis] = view.shape[axis];
    result.stride[axis] = view.stride[axis];
  }
  return result;
}

Array borrow(py::handle object, const char* argument) {
  Array array = borrow_any(object, argument);
  if (array.view.dtype == DType::int64) wrong_dtype(argument, "int64");
  return array;
}

Array borrow_indices(py::handle object, const char* argument) {
  Array array = borrow_any(object, argument);
  if (array.view.dtype != DType::int64)
    throw py::type_error(std::string(argument) + ": got dtype " + validate::name_of(array.view.dtype) +
                         ", expected int64");
  return array;
}

Array borrow_output(py::handle object, const char* argument) {
  Array array = borrow(object, argument);
  if (array.read_only) throw py::value_error(std::string(argument) + ": is read-only, expected a writable array");
  if (array.copied)
    throw py::value_error(std::string(argument) + ": was exported as a copy, expected an array written in place");
  return array;
}

Array borrow_optional(py::handle object, const char* argument) {
  return object.is_none() ? Array{} : borrow(object, argument);
}

void mark_written(py::handle first, py::handle second) {
  PyObject* written[2];
  Py_ssize_t count = 0;
  for (py::handle object : {first, second})
    if (object && !object.is_none() && cached_reader(object).torch) written[count++] = object.ptr();
  if (count == 0) return;
  static PyObject* increment = nullptr;  // kept for the life of the process, like torch itself
  if (!increment) {
    py::object function = py::getattr(py::module_::import("torch._C"), "_increment_version", py::none());
    // The public function is the same behind a Python call that costs more than the op's dispatch.
    if (function.is_none()) function = py::module_::import("torch.autograd.graph").attr("increment_version");
    increment = function.release().ptr();
  }
  PyObject* tensors = count == 2 ? PyTuple_Pack(2, written[0], written[1]) : PyTuple_Pack(1, written[0]);
  if (!tensors) throw py::error_already_set();
  PyObject* none = PyObject_CallOneArg(increment, tensors);
  Py_DECREF(tensors);
  if (!none) throw py::error_already_set();
  Py_DECREF(none);
}

}  // namespace pyparareal::bindings
