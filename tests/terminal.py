# SPDX-License-Identifier: BSD-3-Clause
"""Terminals for tests: one in memory, and a real one (a pty) for a command in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from pyparareal._progress import CLEAR

ROOT = Path(__file__).resolve().parents[1]


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self):
        return True

    def lasting(self):
        """The lines that stay: without what was rewritten."""
        return [line.rpartition(CLEAR)[2] for line in self.getvalue().split("\n")]


def watched(words, *, interrupt_at=None, timeout=120, env=None):
    """Run ``python WORDS``, standard error on a pty, standard output in a pipe: exit status, output, what was shown.

    With ``interrupt_at`` the process gets one SIGINT as soon as that text is shown.
    """
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    # A shell starts what runs in its background deaf to interrupts, and so are then the tests and what they start.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=slave, stdin=subprocess.DEVNULL, cwd=ROOT,
        env=environment | (env or {}),
    )  # fmt: skip
    signal.signal(signal.SIGINT, heard)
    os.close(slave)
    shown, waiting, end = "", interrupt_at is not None, time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            try:
                piece = os.read(master, 65536).decode()
            except OSError:  # EIO: so Linux says that the last writer has gone
                break
            if not piece:
                break
            shown += piece
            if waiting and interrupt_at in shown:
                process.send_signal(signal.SIGINT)
                waiting = False
        out = process.communicate(timeout=timeout)[0].decode()
    finally:
        os.close(master)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
    return process.returncode, out, shown.replace("\r\n", "\n")


def screen(shown):
    """The lines that a terminal shows in the end, for text with newlines and ``CLEAR`` as the only controls."""
    assert "\x1b" not in shown.replace(CLEAR, ""), "no other control: the cursor is never hidden, nothing coloured"
    return [line.rpartition(CLEAR)[2] for line in shown.split("\n")]
