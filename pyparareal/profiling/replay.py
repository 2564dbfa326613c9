# SPDX-License-Identifier: BSD-3-Clause
"""``python -m pyparareal.profiling.replay FILE [--device cuda] [--repeats 10]``: run a captured op again.

Under the profilers of NVIDIA, with what :func:`pyparareal.profiling.capture` saved::

    nsys profile --stats=true python -m pyparareal.profiling.replay relax_gru.0.npz --device cuda --repeats 10
    ncu --set full --kernel-name regex:relax python -m pyparareal.profiling.replay relax_gru.0.npz --device cuda

``--repeats`` overwrites the caches before every call, by kernels of the library of the arrays, which ``--kernel-name``
leaves out. Without it the op runs once.
"""

import sys

from .replaying import main, replay

if __name__ == "__main__":
    sys.exit(main())
# Imported, it is the function: pyparareal.profiling.replay is one thing, whoever imports what first.
sys.modules[__name__] = replay  # type: ignore[assignment]
