// SPDX-License-Identifier: BSD-3-Clause
// pyparareal._core: borrow the arrays, find the stream, let go of the GIL, call ops.h, raise what went wrong.
// Arguments are positional and outputs are given; pyparareal/ops.py adds defaults and allocation.
#include <string>

#include "../backend.h"
#include "calls.h"
#include "nvtx.h"
#include "pyparareal/capsule.h"
#include "pyparareal/ops.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../cpu/parallel.h"
#include "../cpu/tiles.h"

#ifndef PYPARAREAL_VERSION
#define PYPARAREAL_VERSION "unknown"
#endif
#ifndef PYPARAREAL_CUDA_ARCHS
#define PYPARAREAL_CUDA_ARCHS ""
#endif

namespace pyparareal::bindings {
namespace {

void parareal_update(py::handle out, py::handle f_old, py::handle g_new, py::handle g_old, py::handle u_old,
                     py::handle jump, int norm, py::handle stream, py::handle threads) {
  const Array f = borrow(f_old, "f_old"), g = borrow(g_new, "g_new"), h = borrow(g_old, "g_old");
  const Array old = borrow_optional(u_old, "u_old"), u = borrow_output(out, "out");
  const Array norms = jump.is_none() ? Array{} : borrow_output(jump, "jump");
  const Stream on = resolve_stream(stream, f, f_old);
  Exec exec{on.handle, thread_count(threads, f, 4), nullptr, 0};
  const Workspace scratch(parareal_update_workspace_bytes(old.input()), u, out, exec);
  run([&] {
    return pyparareal::parareal_update(u.view, f.input(), g.input(), h.input(), old.input(), norms.view, norm_of(norm),
                                       exec);
  });
  keep_alive(on, f, {out, f_old, g_new, g_old, u_old, jump, scratch.object()});
  mark_written(out, jump);
}

void slice_norms(py::handle out, py::handle u, py::handle u_old, int norm, py::handle stream, py::handle threads) {
  const Array state = borrow(u, "u"), old = borrow_optional(u_old, "u_old"), norms = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, state, u);
  Exec exec{on.handle, thread_count(threads, state, 1), nullptr, 0};
  const Workspace scratch(slice_norms_workspace_bytes(state.input()), norms, out, exec);
  run([&] { return pyparareal::slice_norms(norms.view, state.input(), old.input(), norm_of(norm), exec); });
  keep_alive(on, state, {out, u, u_old, scratch.object()});
  mark_written(out);
}

void extract(py::handle out, py::handle u, py::handle start, py::handle step, py::handle stream, py::handle threads) {
  const Array fine = borrow(u, "u"), coarse = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, fine, u);
  const Exec exec{on.handle, thread_count(threads, coarse, 2), nullptr, 0};
  const int64_t first = integer(start, "start"), pitch = integer(step, "step");
  run([&] { return pyparareal::extract(coarse.view, fine.input(), first, pitch, exec); });
  keep_alive(on, fine, {out, u});
  mark_written(out);
}

void inject(py::handle u, py::handle v, py::handle start, py::handle step, py::handle stream, py::handle threads) {
  const Array coarse = borrow(v, "v"), fine = borrow_output(u, "u");
  const Stream on = resolve_stream(stream, fine, u);
  const Exec exec{on.handle, thread_count(threads, coarse, 2), nullptr, 0};
  const int64_t first = integer(start, "start"), pitch = integer(step, "step");
  run([&] { return pyparareal::inject(fine.view, coarse.input(), first, pitch, exec); });
  keep_alive(on, fine, {u, v});
  mark_written(u);
}

void c_relax(py::handle out, py::handle phi, py::handle u, py::handle omega, py::handle stream, py::handle threads) {
  const Array left = borrow(phi, "phi"), right = borrow(u, "u"), result = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, left, phi);
  const Exec exec{on.handle, thread_count(threads, left, 3), nullptr, 0};
  const double weight = number(omega, "omega");
  run([&] { return pyparareal::c_relax(result.view, left.input(), right.input(), weight, exec); });
  keep_alive(on, left, {out, phi, u});
  mark_written(out);
}

void relax_diagonal(py::handle out, py::handle u, py::handle a, py::handle m, py::handle f, py::handle g,
                    py::handle every, py::handle target, py::handle norms, int norm, py::handle stream,
                    py::handle threads) {
  const Array factors = borrow(a, "a");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const Workspace scratch(r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_diagonal(r.out.view, r.u.input(), factors.input(), r.m, r.f.input(), r.g.input(),
                                      r.every.view, r.target.input(), r.norms.view, r.norm, r.exec);
  });
  r.finish(a, scratch.object(), py::none(), py::none());
}

void relax_tridiagonal(py::handle out, py::handle u, py::handle ratio, py::handle scale, py::handle coupling,
                       py::handle m, py::handle f, py::handle g, py::handle every, py::handle target, py::handle norms,
                       int norm, py::handle stream, py::handle threads) {
  const Array down = borrow(ratio, "ratio"), pivots = borrow(scale, "scale"), beside = borrow(coupling, "coupling");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const std::size_t bytes = relax_tridiagonal_workspace_bytes(r.u.input(), r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_tridiagonal(r.out.view, r.u.input(), down.input(), pivots.input(), beside.input(), r.m,
                                         r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm,
                                         r.exec);
  });
  r.finish(ratio, scale, coupling, scratch.object());
}

void relax_stencil(py::handle out, py::handle u, py::handle weights, int boundary, py::handle m, py::handle f,
                   py::handle g, py::handle every, py::handle target, py::handle norms, int norm, py::handle stream,
                   py::handle threads) {
  const Array w = borrow(weights, "weights");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const std::size_t bytes = relax_stencil_workspace_bytes(r.u.input(), r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_stencil(r.out.view, r.u.input(), w.input(), static_cast<Boundary>(boundary), r.m,
                                     r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm,
                                     r.exec);
  });
  r.finish(weights, scratch.object(), py::none(), py::none());
}

// `alpha` is a number or an array, `first` an array or None.
void relax_mlp_sgd(py::handle out, py::handle u, py::handle sizes, py::handle x, py::handle y, py::handle alpha,
                   py::handle first, py::handle count, int hidden, int last, bool bias, py::handle m, py::handle f,
                   py::handle g, py::handle every, py::handle target, py::handle norms, int norm, py::handle stream,
                   py::handle threads) {
  const Array inputs = borrow(x, "x"), outputs = borrow(y, "y");
  const Array batches = first.is_none() ? Array{} : borrow_indices(first, "first");
  Mlp net;
  double neurons[max_layers + 1];
  net.layers = numbers_of(sizes, neurons, max_layers + 1, "sizes") - 1;
  for (int i = 0; i <= net.layers; ++i)
    net.sizes[i] = integer(py::reinterpret_borrow<py::sequence>(sizes)[static_cast<std::size_t>(i)], "sizes");
  net.count = integer(count, "count");
  net.hidden = static_cast<Activation>(hidden), net.last = static_cast<Activation>(last), net.bias = bias;
  const bool own_rates = !py::isinstance<py::float_>(alpha);
  const Array rates = own_rates ? borrow(alpha, "alpha") : Array{};
  if (!own_rates) net.alpha = number(alpha, "alpha");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const auto passes = [](int64_t count) { return std::clamp<int64_t>(count, 1, 1 << 20); };
  r.exec.threads = thread_count(threads, r.u, passes(r.m) * passes(net.count));
  const std::size_t bytes = relax_mlp_sgd_workspace_bytes(r.u.input(), net, r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_mlp_sgd(r.out.view, r.u.input(), net, inputs.input(), outputs.input(), rates.input(),
                                     batches.input(), r.m, r.f.input(), r.g.input(), r.every.view, r.target.input(),
                                     r.norms.view, r.norm, r.exec);
  });
  r.finish(x, y, own_rates ? alpha : py::none(), first, scratch.object());
}

py::dict build_info() {
  py::dict info;
  info["version"] = PYPARAREAL_VERSION;
  info["compiler"] = __VERSION__;
  info["cuda"] = static_cast<bool>(PYPARAREAL_WITH_CUDA);
#if PYPARAREAL_WITH_CUDA
  info["cuda_version"] = cuda::runtime_version();
#else
  info["cuda_version"] = py::none();
#endif
  info["cuda_archs"] = PYPARAREAL_CUDA_ARCHS;
#if defined(_OPENMP)
  info["openmp"] = true;
  info["threads"] = omp_get_max_threads();
#else
  info["openmp"] = false;
  info["threads"] = 1;
#endif
  info["simd"] = cpu::tiles().name;
  return info;
}

void select_simd(const std::string& name) {
  if (!cpu::select_tiles(name.c_str()))
    throw py::value_error("name: got '" + name +
                          "', expected best, baseline, avx2 or avx512, as far as this "
                          "processor runs it");
}

OpsTable ops_table = {ops_table_version,
                      sizeof(OpsTable),
                      pyparareal::parareal_update,
                      pyparareal::parareal_update_workspace_bytes,
                      pyparareal::slice_norms,
                      pyparareal::slice_norms_workspace_bytes,
                      pyparareal::extract,
                      pyparareal::inject,
                      pyparareal::c_relax,
                      pyparareal::relax_diagonal,
                      pyparareal::relax_tridiagonal,
                      pyparareal::relax_tridiagonal_workspace_bytes,
                      pyparareal::relax_stencil,
                      pyparareal::relax_stencil_workspace_bytes,
                      pyparareal::relax_rk,
                      pyparareal::relax_rk_workspace_bytes,
                      pyparareal::relax_mlp_sgd,
                      pyparareal::relax_mlp_sgd_workspace_bytes,
                      pyparareal::relax_gru,
                      pyparareal::relax_gru_workspace_bytes,
                      pyparareal::relax_gru_adjoint,
                      pyparareal::relax_gru_adjoint_workspace_bytes,
                      pyparareal::scan_diag,
                      pyparareal::scan_diag_workspace_bytes,
                      pyparareal::scan_block,
                      pyparareal::scan_block_workspace_bytes,
                      pyparareal::relax_dense,
                      pyparareal::relax_dense_workspace_bytes,
                      pyparareal::relax_dense_adjoint,
                      pyparareal::newton_gru,
                      pyparareal::newton_gru_workspace_bytes};

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The kernels of ops.h on borrowed arrays; see pyparareal.ops for the documented functions.";
  module.def("parareal_update", parareal_update, py::arg("out"), py::arg("f_old"), py::arg("g_new"), py::arg("g_old"),
             py::arg("u_old").none(true), py::arg("jump").none(true), py::arg("norm"), py::arg("stream").none(true),
             py::arg("threads"));
  module.def("slice_norms", slice_norms, py::arg("out"), py::arg("u"), py::arg("u_old").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("extract", extract, py::arg("out"), py::arg("u"), py::arg("start"), py::arg("step"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("inject", inject, py::arg("u"), py::arg("v"), py::arg("start"), py::arg("step"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("c_relax", c_relax, py::arg("out"), py::arg("phi"), py::arg("u"), py::arg("omega"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_diagonal", relax_diagonal, py::arg("out").none(true), py::arg("u"), py::arg("a"), py::arg("m"),
             py::arg("f").none(true), py::arg("g").none(true), py::arg("every").none(true),
             py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"), py::arg("stream").none(true),
             py::arg("threads"));
  module.def("relax_tridiagonal", relax_tridiagonal, py::arg("out").none(true), py::arg("u"), py::arg("ratio"),
             py::arg("scale"), py::arg("coupling"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_stencil", relax_stencil, py::arg("out").none(true), py::arg("u"), py::arg("weights"),
             py::arg("boundary"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_rk", relax_rk, py::arg("out").none(true), py::arg("u"), py::arg("rhs"), py::arg("parameters"),
             py::arg("tableau"), py::arg("dt"), py::arg("m"), py::arg("substeps"), py::arg("times").none(true),
             py::arg("f").none(true), py::arg("g").none(true), py::arg("every").none(true),
             py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"), py::arg("stream").none(true),
             py::arg("threads"));
  module.def("rk_arguments", rk_arguments, py::arg("out").none(true), py::arg("u"), py::arg("components"),
             py::arg("parameters"), py::arg("tableau"), py::arg("dt"), py::arg("m"), py::arg("substeps"),
             py::arg("times").none(true), py::arg("f").none(true), py::arg("g").none(true), py::arg("every").none(true),
             py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"), py::arg("stream").none(true));
  module.def("rk_launched", rk_launched, py::arg("out").none(true), py::arg("u"), py::arg("dt").none(true),
             py::arg("times").none(true), py::arg("f").none(true), py::arg("g").none(true), py::arg("every").none(true),
             py::arg("stream").none(true));
  module.def("relax_mlp_sgd", relax_mlp_sgd, py::arg("out").none(true), py::arg("u"), py::arg("sizes"), py::arg("x"),
             py::arg("y"), py::arg("alpha"), py::arg("first").none(true), py::arg("count"), py::arg("hidden"),
             py::arg("last"), py::arg("bias"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("tree_sum", tree_sum, py::arg("values"), "Sum of float64 [slices] as reference.tree_sum rounds it.");
  module.def("relax_gru", relax_gru, py::arg("out").none(true), py::arg("u"), py::arg("gates"), py::arg("weight"),
             py::arg("bias").none(true), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"), py::arg("precision") = 0);
  module.def("relax_gru_adjoint", relax_gru_adjoint, py::arg("d_start"), py::arg("d_gates").none(true),
             py::arg("d_hidden").none(true), py::arg("u"), py::arg("gates"), py::arg("weight"),
             py::arg("bias").none(true), py::arg("d_end"), py::arg("d_every").none(true), py::arg("stream").none(true),
             py::arg("threads"), py::arg("precision") = 0);
  module.def("scan_diag", scan_diag, py::arg("out"), py::arg("a"), py::arg("b"), py::arg("start").none(true),
             py::arg("reverse"), py::arg("stream").none(true), py::arg("threads"));
  module.def("scan_block", scan_block, py::arg("out"), py::arg("a"), py::arg("b"), py::arg("start").none(true),
             py::arg("reverse"), py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_dense", relax_dense, py::arg("out").none(true), py::arg("u"), py::arg("weight"),
             py::arg("bias").none(true), py::arg("h"), py::arg("activation"), py::arg("m"),
             py::arg("slopes").none(true), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"), py::arg("precision") = 0);
  module.def("relax_dense_adjoint", relax_dense_adjoint, py::arg("out").none(true), py::arg("v"), py::arg("weight"),
             py::arg("slopes"), py::arg("scale"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"), py::arg("precision") = 0);
  module.def("newton_gru", newton_gru, py::arg("out"), py::arg("jacobians").none(true), py::arg("residuals").none(true),
             py::arg("updates").none(true), py::arg("u"), py::arg("products"), py::arg("gates"), py::arg("diagonal"),
             py::arg("bias").none(true), py::arg("factor"), py::arg("stream").none(true), py::arg("threads"));
  module.def("build_info", build_info, "What this extension was built with.");
  module.def("select_simd", select_simd, py::arg("name"), "Choose the instruction set of the CPU kernels.");
  module.def("held_calls", held_calls, "Calls on foreign streams whose arrays are still held.");
#if PYPARAREAL_WITH_CUDA
  module.def("cuda_device_count", cuda::device_count, "CUDA devices the driver offers; 0 without a usable driver.");
  module.def("cuda_driver_version", cuda::driver_version, "CUDA version of the driver, e.g. 13000; 0 without one.");
#else
  module.def("cuda_device_count", [] { return 0; }, "CUDA devices; always 0 in this CPU-only build.");
  module.def("cuda_driver_version", [] { return 0; }, "CUDA version of the driver; always 0 in this CPU-only build.");
#endif
  define_nvtx(module);
  module.attr("ops_table") = py::capsule(&ops_table, ops_capsule_name);
}

}  // namespace pyparareal::bindings
