# SPDX-License-Identifier: BSD-3-Clause
"""How much memory the process and its devices hold, looked at now and then."""

from __future__ import annotations

import os
import sys

EVERY = 4_000_000  # ns from a look at the process to the next one, which takes a microsecond or more
ON_DEVICES = 10_000_000  # to torch's caching allocators, which take some tens


class Meter:
    """Samples "resident bytes" of the process and "allocated bytes cuda:0" of torch's allocator.

    Attributes
    ----------
    taken : list of (counter, ns, bytes)
    due : int
        When the next look is; many threads may look at it.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, float]] = []
        self.due = self._devices_due = 0
        self._page = os.sysconf("SC_PAGE_SIZE")
        try:
            self._file: int | None = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not Linux
            self._file = None

    def measure(self, now: int) -> None:
        """Look, at ``now`` ns."""
        self.due = now + EVERY  # before the look: another thread need not look too
        file = self._file
        if file is not None:
            try:
                pages = int(os.pread(file, 128, 0).split()[1])
            except OSError:
                return
            self.taken.append(("resident bytes", now, float(pages * self._page)))
        if now >= self._devices_due:
            self._devices_due = now + ON_DEVICES
            self._measure_devices(now)

    def _measure_devices(self, now: int) -> None:
        torch = sys.modules.get("torch")
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_initialized():
            return
        for number in range(cuda.device_count()):
            if held := cuda.memory_allocated(number):
                self.taken.append((f"allocated bytes cuda:{number}", now, float(held)))

    def close(self) -> None:
        """No more looks at the process."""
        file, self._file = self._file, None
        self.due = 1 << 63
        if file is not None:
            os.close(file)

    def __del__(self) -> None:
        self.close()
