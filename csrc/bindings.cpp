// The Python module compressor._C: every launcher of ops.h under its own name. Pointers arrive as
// integers (Tensor.data_ptr(), 0 for null) and the GIL is released while native code runs.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "ops.h"

#ifdef COMPRESSOR_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

template <class T>
using FromPython = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, T>;

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_pointer_v<To>) {
    return reinterpret_cast<To>(value);
  } else {
    return value;
  }
}

void check(const std::string& name, int status) {
#ifdef COMPRESSOR_WITH_CUDA
  if (status != cudaSuccess) {
    cudaGetLastError();  // or the next launch would find it
    throw std::runtime_error(name + ": " + cudaGetErrorString(static_cast<cudaError_t>(status)));
  }
#else
  if (status != 0) throw std::runtime_error(name + ": status " + std::to_string(status));
#endif
}

template <class Result, class... Arguments>
void bind(py::module_& module, const char* name, Result (*launch)(Arguments...)) {
  module.def(name, [name, launch](FromPython<Arguments>... arguments) {
    py::gil_scoped_release released;
    if constexpr (std::is_void_v<Result>) {
      launch(convert<Arguments>(arguments)...);
    } else {
      check(name, launch(convert<Arguments>(arguments)...));
    }
  });
}

}  // namespace

#define BIND(function) bind(module, #function, compressor::function)

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of compressor; see csrc/ops.h.";
  BIND(besa_cut_cpu);
  BIND(besa_mask_cpu);
  BIND(besa_mask_backward_cpu);
  BIND(colsum_cpu);
  BIND(compact_cpu);
  BIND(eliminate_cpu);
  BIND(moments_cpu);
  BIND(rank_cpu);
  BIND(swiglu_moments_cpu);
  BIND(taylor_cpu);
#ifdef COMPRESSOR_WITH_CUDA
  BIND(besa_cut_cuda);
  BIND(besa_mask_cuda);
  BIND(besa_mask_backward_cuda);
  BIND(compact_cuda);
  BIND(eliminate_cuda);
  BIND(rank_cuda);
  module.attr("with_cuda") = true;
  module.attr("archs") = COMPRESSOR_ARCHS;
#else
  module.attr("with_cuda") = false;
  module.attr("archs") = "";
#endif
}
