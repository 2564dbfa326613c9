# SPDX-License-Identifier: BSD-3-Clause
# distutils: language = c++
# cython: language_level=3, cdivision=True
"""The kernels for other Cython modules; the functions are in ``cy_ops.pxd``, none is visible from Python."""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid

from pyparareal import _core
from pyparareal.errors import CudaError


cdef const OpsTable* table


cdef const OpsTable* find_table() except NULL:
    capsule = getattr(_core, "ops_table", None)
    if not PyCapsule_IsValid(capsule, ops_capsule_name):
        raise ImportError("pyparareal._core.ops_table: expected the capsule of the kernels; reinstall pyparareal")
    found = <const OpsTable*>PyCapsule_GetPointer(capsule, ops_capsule_name)
    if found.version != ops_table_version or found.bytes < sizeof(OpsTable):
        raise ImportError(
            f"pyparareal._core.ops_table: got version {found.version} of {found.bytes} bytes, expected version "
            f"{ops_table_version} of at least {sizeof(OpsTable)} bytes; reinstall pyparareal")
    return found


table = find_table()


cdef Status parareal_update(
        MutableView u, ConstView f_old, ConstView g_new, ConstView g_old, ConstView u_old, MutableView jump,
        Norm norm, Exec exec) noexcept nogil:
    return table.parareal_update(u, f_old, g_new, g_old, u_old, jump, norm, exec)


cdef size_t parareal_update_workspace_bytes(const ConstView& u_old) noexcept nogil:
    return table.parareal_update_workspace_bytes(u_old)


cdef Status slice_norms(MutableView norms, ConstView u, ConstView u_old, Norm norm, Exec exec) noexcept nogil:
    return table.slice_norms(norms, u, u_old, norm, exec)


cdef size_t slice_norms_workspace_bytes(const ConstView& u) noexcept nogil:
    return table.slice_norms_workspace_bytes(u)


cdef Status extract(MutableView v, ConstView u, int64_t start, int64_t step, Exec exec) noexcept nogil:
    return table.extract(v, u, start, step, exec)


cdef Status inject(MutableView u, ConstView v, int64_t start, int64_t step, Exec exec) noexcept nogil:
    return table.inject(u, v, start, step, exec)


cdef Status c_relax(MutableView u_new, ConstView phi, ConstView u, double omega, Exec exec) noexcept nogil:
    return table.c_relax(u_new, phi, u, omega, exec)


cdef Status relax_diagonal(
        MutableView out, ConstView u, ConstView a, int64_t m, ConstView f, ConstView g, MutableView every,
        ConstView target, MutableView norms, Norm norm, Exec exec) noexcept nogil:
    return table.relax_diagonal(out, u, a, m, f, g, every, target, norms, norm, exec)


cdef Status relax_tridiagonal(
        MutableView out, ConstView u, ConstView ratio, ConstView scale, ConstView coupling, int64_t m,
        ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
        Exec exec) noexcept nogil:
    return table.relax_tridiagonal(out, u, ratio, scale, coupling, m, f, g, every, target, norms, norm, exec)


cdef size_t relax_tridiagonal_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil:
    return table.relax_tridiagonal_workspace_bytes(u, threads)


cdef Status relax_stencil(
        MutableView out, ConstView u, ConstView weights, Boundary boundary, int64_t m, ConstView f, ConstView g,
        MutableView every, ConstView target, MutableView norms, Norm norm, Exec exec) noexcept nogil:
    return table.relax_stencil(out, u, weights, boundary, m, f, g, every, target, norms, norm, exec)


cdef size_t relax_stencil_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil:
    return table.relax_stencil_workspace_bytes(u, threads)


cdef Status relax_rk(
        MutableView out, ConstView u, const RungeKutta& scheme, ConstView steps, ConstView times, int64_t m,
        ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
        Exec exec) noexcept nogil:
    return table.relax_rk(out, u, scheme, steps, times, m, f, g, every, target, norms, norm, exec)


cdef size_t relax_rk_workspace_bytes(const ConstView& u, const RungeKutta& scheme, int32_t threads) noexcept nogil:
    return table.relax_rk_workspace_bytes(u, scheme, threads)


cdef Status relax_mlp_sgd(
        MutableView out, ConstView u, const Mlp& net, ConstView x, ConstView y, ConstView alpha, ConstView first,
        int64_t m, ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
        Exec exec) noexcept nogil:
    return table.relax_mlp_sgd(out, u, net, x, y, alpha, first, m, f, g, every, target, norms, norm, exec)


cdef size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t threads) noexcept nogil:
    return table.relax_mlp_sgd_workspace_bytes(u, net, threads)


cdef Status relax_gru(
        MutableView out, ConstView u, ConstView gates, ConstView weight, ConstView bias, int64_t m, ConstView f,
        ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
        Precision precision, Exec exec) noexcept nogil:
    return table.relax_gru(out, u, gates, weight, bias, m, f, g, every, target, norms, norm, precision, exec)


cdef size_t relax_gru_workspace_bytes(const ConstView& u, Precision precision, int32_t threads) noexcept nogil:
    return table.relax_gru_workspace_bytes(u, precision, threads)


cdef Status relax_gru_adjoint(
        MutableView d_start, MutableView d_gates, MutableView d_hidden, ConstView u, ConstView gates, ConstView weight,
        ConstView bias, ConstView d_end, ConstView d_every, Precision precision, Exec exec) noexcept nogil:
    return table.relax_gru_adjoint(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every, precision, exec)


cdef size_t relax_gru_adjoint_workspace_bytes(
        const ConstView& d_end, Precision precision, int32_t threads) noexcept nogil:
    return table.relax_gru_adjoint_workspace_bytes(d_end, precision, threads)


cdef Status relax_dense(
        MutableView out, ConstView u, ConstView weight, ConstView bias, double h, DenseActivation activation,
        int64_t m, MutableView slopes, ConstView f, ConstView g, MutableView every, ConstView target,
        MutableView norms, Norm norm, Precision precision, Exec exec) noexcept nogil:
    return table.relax_dense(
        out, u, weight, bias, h, activation, m, slopes, f, g, every, target, norms, norm, precision, exec)


cdef size_t relax_dense_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil:
    return table.relax_dense_workspace_bytes(u, threads)


cdef Status relax_dense_adjoint(
        MutableView out, ConstView v, ConstView weight, ConstView slopes, double scale, int64_t m, ConstView f,
        ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
        Precision precision, Exec exec) noexcept nogil:
    return table.relax_dense_adjoint(
        out, v, weight, slopes, scale, m, f, g, every, target, norms, norm, precision, exec)


cdef Status scan_diag(
        MutableView u, ConstView a, ConstView b, ConstView start, bint reverse, Exec exec) noexcept nogil:
    return table.scan_diag(u, a, b, start, reverse, exec)


cdef size_t scan_diag_workspace_bytes(const ConstView& b, int32_t threads) noexcept nogil:
    return table.scan_diag_workspace_bytes(b, threads)


cdef Status scan_block(
        MutableView u, ConstView a, ConstView b, ConstView start, bint reverse, Exec exec) noexcept nogil:
    return table.scan_block(u, a, b, start, reverse, exec)


cdef size_t scan_block_workspace_bytes(const ConstView& b, int32_t threads) noexcept nogil:
    return table.scan_block_workspace_bytes(b, threads)


cdef Status newton_gru(
        MutableView out, MutableView jacobians, MutableView residuals, MutableView updates, ConstView u,
        ConstView products, ConstView gates, ConstView diagonal, ConstView bias, double factor,
        Exec exec) noexcept nogil:
    return table.newton_gru(out, jacobians, residuals, updates, u, products, gates, diagonal, bias, factor, exec)


cdef size_t newton_gru_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil:
    return table.newton_gru_workspace_bytes(u, threads)


cdef Py_ssize_t item_bytes(DType dtype) noexcept nogil:
    return 8 if dtype == DType.float64 or dtype == DType.int64 else 4 if dtype == DType.float32 else 2


cdef MutableView view_of(
        void* data, DType dtype, int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides) noexcept nogil:
    cdef MutableView view
    cdef Py_ssize_t item = item_bytes(dtype)
    cdef int64_t dense = 1
    cdef int axis
    view.data = data
    view.dtype = dtype
    view.ndim = ndim
    if ndim > max_ndim:
        return view
    for axis in range(ndim - 1, -1, -1):
        view.shape[axis] = shape[axis]
        view.stride[axis] = dense if strides == NULL else strides[axis] // item
        dense *= shape[axis]
        if strides != NULL and strides[axis] % item != 0:
            view.ndim = -1
    return view


cdef ConstView input_of(
        const void* data, DType dtype, int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides) noexcept nogil:
    return as_input(view_of(<void*>data, dtype, ndim, shape, strides))


cdef ConstView as_input(const MutableView& view) noexcept nogil:
    cdef ConstView result
    cdef int axis
    result.data = view.data
    result.dtype = view.dtype
    result.device = view.device
    result.device_id = view.device_id
    result.ndim = view.ndim
    for axis in range(min(view.ndim, <int32_t>max_ndim)):
        result.shape[axis] = view.shape[axis]
        result.stride[axis] = view.stride[axis]
    return result


cdef int raise_unless_ok(const Status& status) except -1 nogil:
    if status.code == StatusCode.ok:
        return 0
    with gil:
        message = (<const char*>status.message).decode("utf-8", "replace")
        if status.code == StatusCode.invalid_type:
            raise TypeError(message)
        if status.code == StatusCode.invalid_value:
            raise ValueError(message)
        raise CudaError(message)
