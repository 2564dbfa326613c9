# SPDX-License-Identifier: BSD-3-Clause
"""How a command shows that it is at work: on standard error, if a terminal is there to see it, else not at all.

Commands use it, library code does not. The last line of the terminal is rewritten in place; the cursor is never
hidden, and a ``with`` block wipes the line however it is left, so an interrupt leaves the terminal as it was.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

CLEAR = "\r\x1b[K"  # to the first column, then erase to the end of the line
INTERVAL = 0.1  # seconds between two pictures of one line: no eye reads faster, and slow terminals keep up


class Live:
    """Lasting lines and one that is rewritten in place.

    Parameters
    ----------
    wanted : False: nothing is shown; True: lasting lines are shown anywhere; None: shown on a terminal
    out : default standard error at the time of the call
    """

    def __init__(
        self, wanted: bool | None = None, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.out = sys.stderr if out is None else out
        self.on_terminal = wanted is not False and self.out.isatty()
        self.active = self.on_terminal if wanted is None else wanted
        self._clock, self._shown, self._last = clock, False, -INTERVAL

    def status(self, text: str, *, at_once: bool = False) -> None:
        """``text`` as the line at the bottom; skipped if the last one is younger than ``INTERVAL``."""
        if not self.on_terminal or (not at_once and self._clock() - self._last < INTERVAL):
            return
        self._last, self._shown = self._clock(), True
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and could not be wiped
        self.out.write(CLEAR + text.partition("\n")[0][:width])
        self.out.flush()

    def line(self, text: str) -> None:
        """``text`` as lines that stay, above the one at the bottom."""
        if self.active:
            self.wipe()
            self.out.write(text + "\n")
            self.out.flush()

    def wipe(self) -> None:
        """Take the line at the bottom away."""
        if self._shown:
            self.out.write(CLEAR)
            self.out.flush()
            self._shown = False

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wipe()


def wanted(quiet: bool, progress: bool) -> bool | None:
    """What ``--quiet`` and ``--progress`` say to :class:`Live`; ValueError if both are given."""
    if quiet and progress:
        raise ValueError("progress: got --quiet and --progress, expected at most one of them")
    return False if quiet else True if progress else None


def seconds_words(seconds: float) -> str:
    """``0.42 s``, ``12 s``, ``3:05``, ``2:00:05``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole} s"
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def bar(share: float, width: int = 20) -> str:
    """``########------------`` for 0.4; shares beyond 0 and 1 are cut."""
    full = round(width * min(max(share, 0.0), 1.0))
    return "#" * full + "-" * (width - full)
