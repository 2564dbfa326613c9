# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal train``: train a parareal network and, to compare, its serial twin."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .training_job.settings import Settings

INTERRUPTED = 128 + signal.SIGINT

EPILOG = """\
Ctrl-C finishes the step, saves, and exits with status 130; --resume continues bit for bit.
A finished run in the output directory is replaced; an unfinished one only with --restart.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options; imports no torch."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    usual = Settings()
    option("--model", default=usual.model, help="such as resnet8, 20, 110, 164, 1001, vgg16_bn (default: %(default)s)")
    option("--data", default=usual.data, choices=["digits"], help="1,797 handwritten digits (default)")
    option("--parts", type=int, default=usual.parts, help="parts of the parareal network (default: %(default)s)")
    option("--correction", default=usual.correction, choices=["residual", "difference"], help="(default: %(default)s)")
    option(
        "--execution",
        default=usual.execution,
        choices=["serial", "batched", "parallel", "auto"],
        help="how the parts are run, with the same result (default: %(default)s)",
    )
    option("--compare-serial", action="store_true", help="also train the serial network, in the same way")
    option("--epochs", type=int, default=usual.epochs, help="(default: %(default)s)")
    option("--batch-size", type=int, default=usual.batch_size, help="(default: %(default)s)")
    option("--lr", type=float, default=usual.lr, help="largest learning rate (default: %(default)s)")
    option("--momentum", type=float, default=usual.momentum, help="(default: %(default)s)")
    option("--weight-decay", type=float, default=usual.weight_decay, help="(default: %(default)s)")
    option("--augment", default=usual.augment, choices=["shift", "none"], help="move images by up to a pixel (default)")
    option("--width", type=int, default=usual.width, help="channels of the first stage (default: %(default)s)")
    option(
        "--coarse-units",
        type=int,
        default=usual.coarse_units,
        help="residual units per coarse net (default: %(default)s)",
    )
    option(
        "--preprocess-units",
        type=int,
        default=usual.preprocess_units,
        help="and per preprocessing map (default: %(default)s)",
    )
    option("--seed", type=int, default=usual.seed, help="(default: %(default)s)")
    option("--threads", type=int, default=usual.threads, help="of torch; 0: torch's own choice (default: %(default)s)")
    option("--out", type=Path, metavar="DIR", help="results and checkpoints (default: runs/<model, data, parts, ...>)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue the checkpoints in DIR")
    how.add_argument("--restart", action="store_true", help="overwrite an unfinished run in DIR")
    option("--quiet", action="store_true", help="no progress bar")
    option("--json", action="store_true", help="print the result as JSON instead of the table")


def main(args: argparse.Namespace) -> int:
    """Run the job; 0 done, 1 failed, 2 wrong arguments or checkpoint, 130 interrupted and saved."""
    try:
        settings = Settings(**{name: getattr(args, name) for name in Settings().as_dict()})
        out = args.out or default_directory(settings)
        return _run(settings, out, args)
    except ImportError as error:
        return _fail(1, _missing_library(error))
    except (ValueError, TypeError) as error:
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
    from .training_job.progress import progress_bar

    with _stop_on_interrupt() as stop:
        try:
            result = run_job(
                settings,
                out,
                compare_serial=args.compare_serial,
                resume=args.resume,
                restart=args.restart,
                interrupted=stop,
                progress=progress_bar(settings.epochs, quiet=args.quiet),
            )
        except Interrupted as saved:
            words = ["pyparareal", "train", *settings.arguments(), *["--compare-serial"] * args.compare_serial]
            again = shlex.join([*words, "--out", str(out), "--resume"])
            return _fail(INTERRUPTED, f"interrupted: {saved}\nContinue with: {again}", prefix="")
    if args.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return 0
    print(report.text_table(result))
    print(report.PREDICTION_NOTE)
    print(report.when_it_will_not_help(result))
    print(f"{result['seconds']:.0f} s. Report: {out / 'report.html'}")
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


def _fail(status: int, message: str, prefix: str = "pyparareal train: error: ") -> int:
    print(f"{prefix}{message}", file=sys.stderr)
    return status


def _main() -> Any:
    parser = argparse.ArgumentParser(prog="pyparareal train", description=__doc__)
    configure(parser)
    return main(parser.parse_args())


if __name__ == "__main__":
    sys.exit(_main())
