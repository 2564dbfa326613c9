# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3
"""The kernels of ops.h as nogil C functions for other Cython modules: ``from pyparareal cimport cy_ops``.

Compile as C++17 with ``pyparareal.get_include()`` on the include path. Nothing is linked: importing
``pyparareal.cy_ops`` finds the kernels in ``pyparareal._core`` and refuses a table of another version.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "pyparareal/precision.h" namespace "pyparareal" nogil:
    enum class Precision(int32_t):
        exact, tf32x3, tf32


cdef extern from "pyparareal/types.h" namespace "pyparareal" nogil:
    enum class DType(int32_t):
        float64, float32, float16, bfloat16, int64

    enum class Device(int32_t):
        cpu, cuda

    enum class Norm(int32_t):
        sum_squares, sum_abs, max_abs

    enum class StatusCode(int32_t):
        ok, invalid_value, invalid_type, cuda_error

    enum class Boundary(int32_t):
        zero, periodic

    enum class RightHandSide(int32_t):
        dahlquist, lorenz, brusselator, fitzhugh_nagumo, van_der_pol, arenstorf, function

    # void slope(T t, const T* u, T* du, const T* parameters) noexcept nogil, or of lanes: see types.h
    cppclass SlopeFunction:
        const void* address
        DType dtype
        bint takes_lanes
        int64_t components
        const void* parameters

    cppclass UniformTimes:
        double t0
        double span
        int64_t steps
        int64_t first
        int64_t stride

    cppclass RungeKutta:
        RightHandSide rhs
        int32_t stages
        int64_t substeps
        double dt
        double parameters[3]
        double a[11][11]
        double b[11]
        double c[11]
        SlopeFunction function
        UniformTimes times

    enum class Activation(int32_t):
        identity, relu, sigmoid, tanh

    enum class DenseActivation(int32_t):
        tanh, relu, smooth_relu, sigmoid, silu

    cppclass Mlp:
        int32_t layers
        bint bias
        Activation hidden
        Activation last
        int64_t sizes[9]
        double alpha
        int64_t count

    const int max_ndim

    # Borrowed [slices, batch, features...]; strides count elements. `ndim` 0 is an absent operand.
    cppclass ConstView:
        const void* data
        DType dtype
        Device device
        int32_t device_id
        int32_t ndim
        int64_t shape[8]
        int64_t stride[8]
        bint present()

    cppclass MutableView:
        void* data
        DType dtype
        Device device
        int32_t device_id
        int32_t ndim
        int64_t shape[8]
        int64_t stride[8]
        bint present()

    cppclass Exec:
        void* stream
        int32_t threads
        void* workspace
        size_t workspace_bytes

    cppclass Status:
        StatusCode code
        char message[252]
        bint ok()


cdef extern from "pyparareal/capsule.h" namespace "pyparareal" nogil:
    const char* ops_capsule_name
    const uint32_t ops_table_version

    cppclass OpsTable:
        uint32_t version
        uint32_t bytes
        Status (*parareal_update)(
            MutableView, ConstView, ConstView, ConstView, ConstView, MutableView, Norm, Exec) noexcept
        size_t (*parareal_update_workspace_bytes)(const ConstView&) noexcept
        Status (*slice_norms)(MutableView, ConstView, ConstView, Norm, Exec) noexcept
        size_t (*slice_norms_workspace_bytes)(const ConstView&) noexcept
        Status (*extract)(MutableView, ConstView, int64_t, int64_t, Exec) noexcept
        Status (*inject)(MutableView, ConstView, int64_t, int64_t, Exec) noexcept
        Status (*c_relax)(MutableView, ConstView, ConstView, double, Exec) noexcept
        Status (*relax_diagonal)(
            MutableView, ConstView, ConstView, int64_t, ConstView, ConstView, MutableView, ConstView, MutableView,
            Norm, Exec) noexcept
        Status (*relax_tridiagonal)(
            MutableView, ConstView, ConstView, ConstView, ConstView, int64_t, ConstView, ConstView, MutableView,
            ConstView, MutableView, Norm, Exec) noexcept
        size_t (*relax_tridiagonal_workspace_bytes)(const ConstView&, int32_t) noexcept
        Status (*relax_stencil)(
            MutableView, ConstView, ConstView, Boundary, int64_t, ConstView, ConstView, MutableView,
            ConstView, MutableView, Norm, Exec) noexcept
        size_t (*relax_stencil_workspace_bytes)(const ConstView&, int32_t) noexcept
        Status (*relax_rk)(
            MutableView, ConstView, const RungeKutta&, ConstView, ConstView, int64_t, ConstView, ConstView, MutableView,
            ConstView, MutableView, Norm, Exec) noexcept
        size_t (*relax_rk_workspace_bytes)(const ConstView&, const RungeKutta&, int32_t) noexcept
        Status (*relax_mlp_sgd)(
            MutableView, ConstView, const Mlp&, ConstView, ConstView, ConstView, ConstView, int64_t, ConstView,
            ConstView, MutableView, ConstView, MutableView, Norm, Exec) noexcept
        size_t (*relax_mlp_sgd_workspace_bytes)(const ConstView&, const Mlp&, int32_t) noexcept
        Status (*relax_gru)(
            MutableView, ConstView, ConstView, ConstView, ConstView, int64_t, ConstView, ConstView, MutableView,
            ConstView, MutableView, Norm, Precision, Exec) noexcept
        size_t (*relax_gru_workspace_bytes)(const ConstView&, Precision, int32_t) noexcept
        Status (*relax_gru_adjoint)(
            MutableView, MutableView, MutableView, ConstView, ConstView, ConstView, ConstView, ConstView, ConstView,
            Precision, Exec) noexcept
        size_t (*relax_gru_adjoint_workspace_bytes)(const ConstView&, Precision, int32_t) noexcept
        Status (*scan_diag)(MutableView, ConstView, ConstView, ConstView, bint, Exec) noexcept
        size_t (*scan_diag_workspace_bytes)(const ConstView&, int32_t) noexcept
        Status (*scan_block)(MutableView, ConstView, ConstView, ConstView, bint, Exec) noexcept
        size_t (*scan_block_workspace_bytes)(const ConstView&, int32_t) noexcept
        Status (*relax_dense)(
            MutableView, ConstView, ConstView, ConstView, double, DenseActivation, int64_t, MutableView, ConstView,
            ConstView, MutableView, ConstView, MutableView, Norm, Precision, Exec) noexcept
        size_t (*relax_dense_workspace_bytes)(const ConstView&, int32_t) noexcept
        Status (*relax_dense_adjoint)(
            MutableView, ConstView, ConstView, ConstView, double, int64_t, ConstView, ConstView, MutableView,
            ConstView, MutableView, Norm, Precision, Exec) noexcept
        Status (*newton_gru)(
            MutableView, MutableView, MutableView, MutableView, ConstView, ConstView, ConstView, ConstView, ConstView,
            double, Exec) noexcept
        size_t (*newton_gru_workspace_bytes)(const ConstView&, int32_t) noexcept


# ops.h, name by name: shapes, meaning and rules are there.
cdef Status parareal_update(
    MutableView u, ConstView f_old, ConstView g_new, ConstView g_old, ConstView u_old, MutableView jump,
    Norm norm, Exec exec) noexcept nogil
cdef size_t parareal_update_workspace_bytes(const ConstView& u_old) noexcept nogil
cdef Status slice_norms(MutableView norms, ConstView u, ConstView u_old, Norm norm, Exec exec) noexcept nogil
cdef size_t slice_norms_workspace_bytes(const ConstView& u) noexcept nogil
cdef Status extract(MutableView v, ConstView u, int64_t start, int64_t step, Exec exec) noexcept nogil
cdef Status inject(MutableView u, ConstView v, int64_t start, int64_t step, Exec exec) noexcept nogil
cdef Status c_relax(MutableView u_new, ConstView phi, ConstView u, double omega, Exec exec) noexcept nogil
cdef Status relax_diagonal(
    MutableView out, ConstView u, ConstView a, int64_t m, ConstView f, ConstView g, MutableView every,
    ConstView target, MutableView norms, Norm norm, Exec exec) noexcept nogil
cdef Status relax_tridiagonal(
    MutableView out, ConstView u, ConstView ratio, ConstView scale, ConstView coupling, int64_t m, ConstView f,
    ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm, Exec exec) noexcept nogil
cdef size_t relax_tridiagonal_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil
cdef Status relax_stencil(
    MutableView out, ConstView u, ConstView weights, Boundary boundary, int64_t m, ConstView f, ConstView g,
    MutableView every, ConstView target, MutableView norms, Norm norm, Exec exec) noexcept nogil
cdef size_t relax_stencil_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil
cdef Status relax_rk(
    MutableView out, ConstView u, const RungeKutta& scheme, ConstView steps, ConstView times, int64_t m, ConstView f,
    ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm, Exec exec) noexcept nogil
cdef size_t relax_rk_workspace_bytes(const ConstView& u, const RungeKutta& scheme, int32_t threads) noexcept nogil
cdef Status relax_mlp_sgd(
    MutableView out, ConstView u, const Mlp& net, ConstView x, ConstView y, ConstView alpha, ConstView first, int64_t m,
    ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
    Exec exec) noexcept nogil
cdef size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t threads) noexcept nogil
cdef Status relax_gru(
    MutableView out, ConstView u, ConstView gates, ConstView weight, ConstView bias, int64_t m, ConstView f,
    ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm, Precision precision,
    Exec exec) noexcept nogil
cdef size_t relax_gru_workspace_bytes(const ConstView& u, Precision precision, int32_t threads) noexcept nogil
cdef Status relax_gru_adjoint(
    MutableView d_start, MutableView d_gates, MutableView d_hidden, ConstView u, ConstView gates, ConstView weight,
    ConstView bias, ConstView d_end, ConstView d_every, Precision precision, Exec exec) noexcept nogil
cdef size_t relax_gru_adjoint_workspace_bytes(
    const ConstView& d_end, Precision precision, int32_t threads) noexcept nogil
cdef Status relax_dense(
    MutableView out, ConstView u, ConstView weight, ConstView bias, double h, DenseActivation activation, int64_t m,
    MutableView slopes, ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
    Precision precision, Exec exec) noexcept nogil
cdef size_t relax_dense_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil
cdef Status relax_dense_adjoint(
    MutableView out, ConstView v, ConstView weight, ConstView slopes, double scale, int64_t m, ConstView f,
    ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm, Precision precision,
    Exec exec) noexcept nogil
cdef Status scan_diag(
    MutableView u, ConstView a, ConstView b, ConstView start, bint reverse, Exec exec) noexcept nogil
cdef size_t scan_diag_workspace_bytes(const ConstView& b, int32_t threads) noexcept nogil
cdef Status scan_block(
    MutableView u, ConstView a, ConstView b, ConstView start, bint reverse, Exec exec) noexcept nogil
cdef size_t scan_block_workspace_bytes(const ConstView& b, int32_t threads) noexcept nogil
cdef Status newton_gru(
    MutableView out, MutableView jacobians, MutableView residuals, MutableView updates, ConstView u, ConstView products,
    ConstView gates, ConstView diagonal, ConstView bias, double factor, Exec exec) noexcept nogil
cdef size_t newton_gru_workspace_bytes(const ConstView& u, int32_t threads) noexcept nogil

# A view of CPU memory from what a typed memoryview says of itself:
#     view_of(&u[0, 0], DType.float64, 2, u.shape, u.strides)
# Strides are in bytes, as in a memoryview; NULL is C-contiguous. More than max_ndim axes, or a stride that
# is no multiple of the item size (ndim becomes -1), give a view the kernels refuse.
cdef MutableView view_of(
    void* data, DType dtype, int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides) noexcept nogil
cdef ConstView input_of(
    const void* data, DType dtype, int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides) noexcept nogil
cdef ConstView as_input(const MutableView& view) noexcept nogil

# ValueError, TypeError or pyparareal.errors.CudaError; needs no GIL while all is well.
cdef int raise_unless_ok(const Status& status) except -1 nogil
