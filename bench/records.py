# SPDX-License-Identifier: BSD-3-Clause
"""Results as they were recorded: from a file, from a file of a commit, and from all commits that changed it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, run

Entry = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """``entries`` as commit ``commit`` of ``date`` (ISO 8601) recorded them in ``path``."""

    commit: str
    date: str
    path: str
    entries: list[Entry]


def read(where: str, root: Path = machine.ROOT) -> list[Entry]:
    """Entries of a file, or of ``COMMIT:PATH``, its content in that commit of the repository at ``root``.

    Raises ValueError naming ``where``: no such file or commit, no JSON, no list of results, a case twice.
    """
    if Path(where).is_file():
        text = Path(where).read_text()
    elif ":" in where:
        text = _of_commit(where, root)
    else:
        raise ValueError(f"{where}: no such file; expected a path or COMMIT:PATH")
    try:
        return checked(json.loads(text))
    except ValueError as error:  # also what json raises
        raise ValueError(f"{where}: {error}") from error


def checked(entries: Any) -> list[Entry]:
    """``entries`` if they are results with one entry per case."""
    if isinstance(entries, list) and not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("results: expected a list of objects")
    run.validate(entries)
    names = [entry["case"] for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"results: more than one entry of {', '.join(twice)}")
    return list(entries)


def history(path: str, root: Path = machine.ROOT) -> list[Version]:
    """All versions of ``path`` that the commits of HEAD's history recorded, oldest first; those that are no results
    (a schema of another time) are left out."""
    log = _git(root, "log", "--reverse", "--format=%H %cI", "--", path)
    found = []
    for row in log.splitlines():
        commit, date = row.split(" ", 1)
        try:
            entries = checked(json.loads(_git(root, "show", f"{commit}:{path}")))
        except ValueError:
            continue
        found.append(Version(commit, date, path, entries))
    return found


def same_machine(a: Entry, b: Entry) -> bool:
    """Processor, number of cores and GPUs are equal: what times depend on first."""
    return all(a["machine"].get(key) == b["machine"].get(key) for key in ("cpu", "cores", "gpus"))


def machine_words(entry: Entry) -> str:
    """``AMD EPYC, 2 cores``, with the GPUs of a case that uses one."""
    found = entry["machine"]
    gpus = [gpu["name"] for gpu in found.get("gpus", [])] if entry["device"] == "cuda" else []
    cores = found.get("cores", "?")
    return ", ".join([str(found.get("cpu", "unknown")), f"{cores} core{'s' * (cores != 1)}", *gpus])


def _of_commit(where: str, root: Path) -> str:
    commit, _, path = where.partition(":")
    if commit.startswith("-"):  # git would take it for an option
        raise ValueError(f"{where}: expected a path or COMMIT:PATH")
    return _git(root, "show", f"{commit}:{path}")


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise ValueError(f"git: {error}") from error
    if done.returncode:
        raise ValueError(f"git {' '.join(words[:2])}: {done.stderr.strip() or 'failed'}")
    return done.stdout
