"""`robustmim COMMAND …`: find the command's file, run it, turn errors into sentences and exit codes.

Exit codes: 0 fine, 1 failed, 2 bad arguments or recipe, 3 --fail-under not met, 4 finished but an honesty check is
red, 5 environment unusable, 130 interrupted and resumable.
"""

from __future__ import annotations

import importlib
import os
import sys

from robustmim import __version__
from robustmim.errors import RobustmimError, suggest

COMMANDS = {
    "demo": "real images, shipped weights: attack, purify, classify, HTML report",
    "doctor": "check this machine: packages, devices, data, models",
    "list": "what is registered: models, classifiers, data sets, recipes, zoo",
    "init": "copy a recipe to edit",
    "train": "train a classifier",
    "pretrain": "train a masked model",
    "robustify": "fine-tune a masked model through purification and classifier (RAMRM)",
    "purify": "purify files or folders of images",
    "sample": "draw images from a diffusion model",
    "evaluate": "attack a classifier behind a purifier; verdict on fresh draws, with honesty checks",
    "curve": "accuracy over the budget, an attack's steps, its draws, or the purifier's steps",
    "landscape": "the loss around images, along an attack's gradient and across it: is there a slope to follow?",
    "compare": "a paired test of two evaluations on the same images",
    "detect": "tell attacked images from clean ones, and measure how well that can be done",
    "corruptions": "accuracy of a classifier, bare and purified, under fog, noise, blur, …",
    "certify": "radii within which a smoothed classifier provably does not change its mind",
    "report": "the HTML page of a run",
}


def usage() -> str:
    """Return the top-level help."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            f"robustmim {__version__}: adversarial robustness by masked image modelling",
            "",
            "usage: robustmim COMMAND [options]",
            "",
            *lines,
            "",
            "`robustmim COMMAND --help` shows a command's options. Start with `robustmim demo`.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, *rest = words
    if command not in COMMANDS:
        print(f"error: there is no command {command!r}. {suggest(command, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"robustmim.cli.{command}")
    try:
        return module.main(rest)
    except RobustmimError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            raise
        print("error: out of memory; lower the batch size, take smaller images, or another --device", file=sys.stderr)
        return 1
    except OSError as error:
        # A full disk, a file without permission: wherever it happens, it is the machine's affair and no fault in here.
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; see to the file or the disk, and try again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
