# SPDX-License-Identifier: BSD-3-Clause
"""Where a method runs. A method says *what* happens in five verbs; a runtime decides *where*."""

from __future__ import annotations

from .local import LocalRuntime as LocalRuntime
from .protocol import Runtime as Runtime
