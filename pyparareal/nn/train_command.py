# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal train``: train a parareal network and, to compare, its serial twin."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .data.names import AUGMENTATIONS, NAMES
from .training_job.settings import (
    AUTOMATIC,
    BALANCES,
    CORRECTIONS,
    EXECUTIONS,
    PRECISIONS,
    SCHEDULES,
    Settings,
)

INTERRUPTED = 128 + signal.SIGINT

EPILOG = """\
Ctrl-C finishes the step, saves, and exits with status 130; --resume continues bit for bit.
A finished run in the output directory is replaced; an unfinished one only with --restart.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options; imports no torch."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = partial(_one_line, parser)  # type: ignore[method-assign]
    parser.set_defaults(**{field.name: field.default for field in dataclasses.fields(Settings)})
    _network_options(parser.add_argument_group("network"))
    _training_options(parser.add_argument_group("training"))
    _machine_options(parser.add_argument_group("machine"))
    _run_options(parser)


def _network_options(group: argparse._ArgumentGroup) -> None:
    option, usual = group.add_argument, Settings()
    option("--model", help=f"such as resnet8, 20, 110, 164, 1001, vgg16_bn (default: {usual.model})")
    option("--width", type=_automatic(int), help="channels of the first stage (default: the model's own)")
    option("--parts", type=int, default=None, help=f"of the parareal network (default: {usual.parts})")
    option("--balance", metavar="WHAT", help=f"what is equal in the parts: {', '.join(BALANCES)} (default: blocks)")
    option("--part-sizes", type=_row(int), metavar="N,N,...", help="blocks in each part, instead of --balance")
    option("--correction", metavar="NAME", help=f"of the interfaces: {' or '.join(CORRECTIONS)} (default: residual)")
    option(
        "--coarse-units",
        type=_automatic(int),
        metavar="N",
        help=f"residual units per coarse net, or auto: what the budget allows (default: {usual.coarse_units})",
    )
    option(
        "--preprocess-units",
        type=_automatic(int),
        metavar="N",
        help=f"and per preprocessing map (default: {usual.preprocess_units})",
    )
    option(
        "--coarse-budget",
        type=float,
        metavar="SHARE",
        help=f"FLOPs of an automatic map relative to a part (default: {usual.coarse_budget})",
    )


def _training_options(group: argparse._ArgumentGroup) -> None:
    option, usual = group.add_argument, Settings()
    option("--data", metavar="NAME", help=f"{', '.join(NAMES)} (default: {usual.data}, needs no files)")
    option("--data-dir", metavar="DIR", help="where the files of --data are; nothing is downloaded")
    option("--image-size", type=int, metavar="PIXELS", help="side of the images: folder and made-up data")
    option("--augment", metavar="NAME", help=f"{', '.join(AUGMENTATIONS)} or auto: the usual one (default)")
    option("--epochs", type=int, help=f"(default: {usual.epochs})")
    option("--batch-size", type=int, metavar="N", help=f"(default: {usual.batch_size})")
    option("--lr", type=float, help=f"largest learning rate (default: {usual.lr})")
    option("--schedule", metavar="NAME", help=f"of the learning rate: {', '.join(SCHEDULES)} (default: cosine)")
    option("--warm-up", type=float, metavar="SHARE", help=f"of all steps, rising (default: {usual.warm_up})")
    marks = ",".join(map(str, usual.milestones))
    option(
        "--milestones",
        type=_row(float),
        metavar="SHARE,...",
        help=f"of all steps: a tenth of the rate from each on, for --schedule step (default: {marks})",
    )
    option("--momentum", type=float, help=f"(default: {usual.momentum})")
    option("--weight-decay", type=float, metavar="RATE", help=f"(default: {usual.weight_decay})")
    option("--seed", type=int, help=f"(default: {usual.seed})")


def _machine_options(group: argparse._ArgumentGroup) -> None:
    option, usual = group.add_argument, Settings()
    option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... or auto: a GPU if there is one (default: cpu)")
    option("--precision", metavar="TYPE", help=f"of the arithmetic: {', '.join(PRECISIONS)} (default: float32)")
    option(
        "--execution",
        metavar="MODE",
        help=f"how the parts are run, with the same result: {', '.join(EXECUTIONS)} (default: {usual.execution})",
    )
    option("--threads", type=int, help=f"of torch; 0: torch's own choice (default: {usual.threads})")


def _run_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--compare-serial", action="store_true", help="also train the serial network, in the same way")
    option("--out", type=Path, metavar="DIR", help="results and checkpoints (default: runs/<model, data, parts, ...>)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue the checkpoints in DIR")
    how.add_argument("--restart", action="store_true", help="overwrite an unfinished run in DIR")
    option("--quiet", action="store_true", help="no progress")
    option("--json", action="store_true", help="print the result as JSON instead of the table")


def _automatic(number: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        return None if word == AUTOMATIC else number(word)

    read.__name__ = f"{AUTOMATIC} or {number.__name__}"  # what argparse calls it in its errors
    return read


def _row(number: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return tuple(number(word) for word in text.split(","))

    read.__name__ = f"row of {number.__name__}s"
    return read


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the arguments say; ``--part-sizes`` also says how many parts."""
    values = {name: getattr(args, name) for name in Settings().as_dict()}
    if values["parts"] is None:
        values["parts"] = Settings().parts if args.part_sizes is None else len(args.part_sizes)
    return Settings(**values)


def main(args: argparse.Namespace) -> int:
    """Run the job; 0 done, 1 failed, 2 wrong arguments or checkpoint, 130 interrupted and saved."""
    try:
        settings = settings_of(args)
        out = args.out or default_directory(settings)
        return _run(settings, out, args)
    except ImportError as error:
        return _fail(1, _missing_library(error))
    except (ValueError, TypeError, FileNotFoundError) as error:
        return _fail(2, str(error))
    except (OSError, RuntimeError) as error:
        return _fail(1, f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted; checkpoints on disk are whole, the work since the last one is lost")


def default_directory(settings: Settings) -> Path:
    """``runs/digits-resnet20-parts4-residual-seed0``."""
    words = [settings.data, settings.model, f"parts{settings.parts}", settings.correction, f"seed{settings.seed}"]
    return Path("runs") / "-".join(words)


def _run(settings: Settings, out: Path, args: argparse.Namespace) -> int:
    from .training_job import report
    from .training_job.job import Interrupted, run_job
    from .training_job.progress import progress_line

    with _stop_on_interrupt() as stop:
        try:
            result = run_job(
                settings,
                out,
                compare_serial=args.compare_serial,
                resume=args.resume,
                restart=args.restart,
                interrupted=stop,
                progress=progress_line(settings.epochs, quiet=args.quiet),
            )
        except Interrupted as saved:
            words = ["pyparareal", "train", *settings.arguments(), *["--compare-serial"] * args.compare_serial]
            again = shlex.join([*words, "--out", str(out), "--resume"])
            return _fail(INTERRUPTED, f"interrupted: {saved}\nContinue with: {again}", prefix="")
    if args.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return 0
    print(report.body_tables(result), end="\n\n")
    print(report.text_table(result))
    print(report.PREDICTION_NOTE)
    print(report.when_it_will_not_help(result))
    print(f"{result['seconds']:.0f} s. Report: {out / 'report.html'}")
    print(f"Where the time goes: {shlex.join(['pyparareal', 'profile', 'train', '--run', str(out)])}")
    return 0


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks for a stop after the current step, the second one stops at once."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread may install handlers
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _missing_library(error: ImportError) -> str:
    if error.name is not None and error.name.partition(".")[0] == "torch":
        return 'training needs torch: pip install "pyparareal[torch,train]"'
    return str(error)


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Instead of the usage, which would be longer than a screen."""
    parser.exit(2, f"{parser.prog}: error: {message} (--help shows the options)\n")


def _fail(status: int, message: str, prefix: str = "pyparareal train: error: ") -> int:
    print(f"{prefix}{message}", file=sys.stderr)
    return status


def _main() -> Any:
    parser = argparse.ArgumentParser(prog="pyparareal train", description=__doc__)
    configure(parser)
    return main(parser.parse_args())


if __name__ == "__main__":
    sys.exit(_main())
