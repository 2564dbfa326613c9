# SPDX-License-Identifier: BSD-3-Clause
"""Mutants that no test can see, each with the reason: (file, line, token, which of its kind in lines of that text)."""

EQUIVALENT: dict[tuple[str, str, str, int], str] = {
    (
        "pyparareal/nn/parareal_network.py",
        "return outputs[-1] if carried is None else outputs[-1] + carried",
        "1",
        1,
    ): "nothing is carried only where there is one part, whose output is the first and the last",
    (
        "pyparareal/parareal.py",
        "f, g = arrays.empty_like(u[1:]), arrays.empty_like(u[1:])",
        "1",
        1,
    ): "f gets a row more than there are slices; no row past the last slice is ever written or read",
    (
        "csrc/cpu/parallel.h",
        "const int64_t most = threads > 0 ? threads : omp_get_max_threads();",
        ">",
        1,
    ): "0 threads would become a team of one: slower, and no number of threads changes a bit",
    (
        "csrc/cpu/parallel.h",
        "if (team > 1) {",
        ">",
        1,
    ): "a parallel region of one thread does what the caller's thread does",
    (
        "csrc/cpu/parallel.h",
        "if (!contiguous || space.slices < 1) return;",
        "1",
        1,
    ): "no slices become one slice of no features: there is no chunk either way",
    (
        "csrc/cpu/tiles_body.h",
        "for (; i + PYPARAREAL_F16C <= count; i += PYPARAREAL_F16C) narrow_some(to + i, from + i);",
        "<=",
        1,
    ): "the last full group is converted one by one, to the same bits",
    (
        "csrc/cpu/tiles_body.h",
        "while (width / 2 >= count && width > 1) width /= 2;",
        ">=",
        1,
    ): "folds one more half of zeros, which changes no bit",
    (
        "csrc/cpu/tiles_body.h",
        "while (width / 2 >= count && width > 1) width /= 2;",
        "1",
        1,
    ): "a chunk has an element, so that a width of 1 already fails the first comparison",
    ("csrc/cpu/tiles_body.h", "while (width > 1) {", "1", 1): "the additional round folds no lane",
    (
        "csrc/cpu/update.cpp",
        "const bool aliased = (... || (static_cast<const void*>(data) == inputs.data));",
        "==",
        1,
    ): "chooses between two ways of writing that are both right under aliasing",
    ("csrc/include/pyparareal/layout.h", "int64_t slice_stride = 0;", "0", 1): "always assigned before it is read",
    (
        "csrc/include/pyparareal/layout.h",
        "PYPARAREAL_HD Layout() { shape[0] = stride[0] = 1; }",
        "0",
        2,
    ): "with no axis longer than 1 there is one feature, at offset 0 whatever the stride",
    (
        "csrc/include/pyparareal/layout.h",
        "PYPARAREAL_HD bool contiguous() const { return ndim == 1 && stride[0] == 1; }",
        "1",
        1,
    ): "takes the general path always: slower, same bits",
    ("csrc/include/pyparareal/layout.h", "int64_t slices = 0;", "0", 1): "always assigned before it is read",
    (
        "csrc/include/pyparareal/layout.h",
        "int axes = 0;",
        "0",
        1,
    ): "a leading axis of one element: the general path, slower, same bits",
    ("csrc/cpu/update.cpp", "T* result = out.tile(slice, feature, scratch[0]);", "0", 2): (
        "c_relax is element-wise and writes an element after reading it, so that it may work in its gathered input"
    ),
    ("csrc/include/pyparareal/layout.h", "layout.ndim = axes == 0 ? 1 : axes;", "1", 1): (
        "with no axes offset() is 0 for the only feature: the general path, same bits"
    ),
    (
        "csrc/include/pyparareal/formulas.h",
        "const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;",
        "<",
        1,
    ): "the smallest normal half comes out of both formulas",
    (
        "csrc/include/pyparareal/formulas.h",
        "if (norm == Norm::max_abs) return (a > b || a != a) ? a : b;",
        ">",
        1,
    ): "of two equal values it does not matter which is returned",
    (
        "csrc/include/pyparareal/layout.h",
        "if (axes > 0 && layout.stride[axes - 1] == size * stride) {",
        "0",
        1,
    ): "merges fewer axes: the general path, slower, same bits",
}
