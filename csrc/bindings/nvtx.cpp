// SPDX-License-Identifier: BSD-3-Clause
// Ranges of the NVTX domain "pyparareal", where NVIDIA's profilers show them. NVTX is header-only: nothing is linked,
// and without a profiler, which names a library in NVTX_INJECTION64_PATH, a range costs two calls of empty functions.
#include "nvtx.h"

#if defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define PYPARAREAL_WITH_NVTX 1
#endif
#endif

namespace pyparareal::bindings {

#if defined(PYPARAREAL_WITH_NVTX)

namespace {

nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t made = nvtxDomainCreateA("pyparareal");
  return made;
}

void push(const char* name) {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &attributes);
}

void pop() { nvtxDomainRangePop(domain()); }

}  // namespace

void define_nvtx(pybind11::module_& module) {
  module.def("_nvtx_push", push, pybind11::arg("name"), "Begin a range on this thread.");
  module.def("_nvtx_pop", pop, "End the last one that began on this thread.");
}

#else

void define_nvtx(pybind11::module_&) {}

#endif

}  // namespace pyparareal::bindings
