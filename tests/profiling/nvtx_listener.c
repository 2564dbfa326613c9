// SPDX-License-Identifier: BSD-3-Clause
// A profiler of one page: writes every range of every NVTX domain to the file named in NVTX_LISTENER_OUT.
#include <stdio.h>
#include <stdlib.h>

#include <nvtx3/nvToolsExt.h>

static void write_line(const char* what, const char* name) {
  FILE* file = fopen(getenv("NVTX_LISTENER_OUT"), "a");
  fprintf(file, "%s %s\n", what, name);
  fclose(file);
}

static nvtxDomainHandle_t NVTX_API create(const char* name) {
  write_line("domain", name);
  return (nvtxDomainHandle_t)(size_t)1;
}

static int NVTX_API push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) {
  write_line(domain ? "push" : "push elsewhere", attributes->message.ascii);
  return 0;
}

static int NVTX_API pop(nvtxDomainHandle_t domain) {
  write_line("pop", domain ? "" : "elsewhere");
  return 0;
}

int NVTX_API InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get) {
  const NvtxExportTableCallbacks* callbacks = get(NVTX_ETID_CALLBACKS);
  NvtxFunctionTable table;
  unsigned size = 0;
  if (!callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size)) return 0;
  *table[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create;
  *table[NVTX_CBID_CORE2_DomainRangePushEx] = (NvtxFunctionPointer)push;
  *table[NVTX_CBID_CORE2_DomainRangePop] = (NvtxFunctionPointer)pop;
  return 1;
}
