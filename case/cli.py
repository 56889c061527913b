"""The command line ``case``: picks the subcommand, and turns whatever goes wrong into one line and an exit code.

0: done. 1: a bug of ours (traceback). 2: something given is wrong, or another process of the run was lost. 130: stopped
by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from case import __version__, console
from case.errors import CaseError

COMMANDS = {
    "train": "train on a data folder, evaluate, draw: checkpoints, metrics, detections and pictures in --output",
    "evaluate": "mAP of a run, or of detections against ground truth (--ground-truth, --predictions)",
    "localize": "detections for feature files with a trained checkpoint: features in, JSON out",
    "convert": "the authors' best_model.pkl and cls_gt.npy to a checkpoint that localize and evaluate take",
    "synth": "write the embedded synthetic data set as a data folder",
    "data": "check a data folder: `case-wtal data check DIR` names everything that is wrong with it at once",
    "demo": "synthetic data, the attention-only baseline, CASE, their table: the tour in a few minutes on two cores",
    "info": "versions, devices, which parts are there and which are not, and why",
}


def usage() -> str:
    lines = [
        "usage: case-wtal COMMAND [flags]      case-wtal COMMAND --help",
        "",
        "CASE: weakly-supervised temporal action localization by clustering and optimal transport.",
        "",
        *(f"  {name:<10} {text}" for name, text in COMMANDS.items()),
        "",
        "  case-wtal --version",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``case`` with these arguments (default: the process's own) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"case {__version__}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        console.error(f"unknown command '{name}'; one of: {', '.join(COMMANDS)}")
        return 2
    try:
        return int(importlib.import_module(f"case.commands.{name}").run(rest) or 0)
    except CaseError as error:
        console.error(str(error))
        return 2
    except KeyboardInterrupt:
        console.error("stopped")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: there is nobody to tell, and flushing at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        console.error(f"{error.filename or 'input/output'}: {error.strerror or error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
