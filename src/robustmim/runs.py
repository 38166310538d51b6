"""Run folders: what a long job writes, where, and how it stays whole when it is killed.

run.json          recipe, environment, command and status; written first
log.jsonl         one line per log or evaluation
last.safetensors  everything needed to go on: weights, averages, optimiser state, step
model.safetensors, config.json   the result, ready to load
records.jsonl     evaluations: one line per sample
claim.json        evaluations: the accuracies, with intervals
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustmim.errors import InputError, RecipeError
from robustmim.radius import Radius, radius_text


def to_plain(value: Any) -> Any:
    """Turn recipes into what JSON and YAML can hold; budgets become '8/255'."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Radius):
        return radius_text(value)
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` when the block ends well: a reader never sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(to_plain(content), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def environment() -> dict[str, Any]:
    """Describe the machine and the software: what a number depends on besides the recipe."""
    import torch

    import robustmim

    folder = Path(robustmim.__file__).resolve().parent

    def git(*words: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    # Installed into an environment inside someone's own repository, the commit would be theirs.
    ours = Path(git("rev-parse", "--show-toplevel") or "/") / "src" / "robustmim" == folder
    commit = git("rev-parse", "--short=12", "HEAD") if ours else ""
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "robustmim": robustmim.__version__,
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hardware": device,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class RunFolder:
    """A folder that a long job writes to.

    Args:
        path: made if needed.
        recipe: what is run; a folder that holds another recipe is refused, so that a resume is what it seems.
        kind: "train", "pretrain", "evaluate", …
        harmless: keys of the recipe that may change on resume, since the result does not depend on them.
        leads: whether this process writes; of several processes, one does.

    Raises:
        InputError: the folder cannot be written, or its run.json does not say what was run.
        RecipeError: it holds a run of another kind or recipe.
    """

    def __init__(
        self, path: Path, *, recipe: Any, kind: str, harmless: tuple[str, ...] = (), leads: bool = True
    ) -> None:
        self.path, self._leads = path, leads
        self._about: dict[str, Any] = {}
        if not leads:
            return
        plain = to_plain(recipe)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / ".writable").touch()
            (path / ".writable").unlink()
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}; choose another folder with --out") from error
        self._about = {
            "kind": kind,
            "recipe": plain,
            "command": " ".join(["robustmim", *sys.argv[1:]]),
            "environment": environment(),
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if (path / "run.json").exists():
            before = read_json(path / "run.json")
            if not isinstance(before, dict) or not {"kind", "recipe"} <= before.keys():
                raise InputError(
                    f"{path / 'run.json'} does not say what was run here; choose another folder with --out, or delete it"
                )
            changed = sorted(
                key
                for key in _differences(_with_defaults(before["recipe"], recipe), plain)
                if not key.startswith(harmless or ("\0",))
            )
            if before["kind"] != kind:
                changed = ["kind of job"]
            if changed:
                raise RecipeError(
                    f"{path} holds another run ({', '.join(changed)} differ); choose another folder with --out, or delete it"
                )
            self._about |= {key: before[key] for key in ("started", "timing") if key in before}
        self.update("running")

    def update(self, status: str, **more: Any) -> None:
        """Set the status in run.json: running, finished, stopped, diverged or failed; and whatever else there is to say."""
        self._about |= {"status": status, **more}
        if self._leads:
            write_json(self.path / "run.json", self._about)

    @property
    def timing(self) -> dict[str, dict[str, float]]:
        """What earlier calls of this run measured: {"purify": {"seconds": …, "images": …}}."""
        return self._about.get("timing", {})

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to log.jsonl."""
        if self._leads:
            append_line(self.path / "log.jsonl", row)

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps after `step`: a resumed run will write them again."""
        path = self.path / "log.jsonl"
        if self._leads and path.exists():
            kept = [row for row in read_lines(path) if row.get("step", 0) <= step]
            with atomic(path) as part:
                part.write_text("".join(json.dumps(row) + "\n" for row in kept))


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line and flush it."""
    with path.open("a") as file:
        file.write(json.dumps(to_plain(row)) + "\n")


def _with_defaults(before: Any, recipe: Any) -> Any:
    """Fill in what a recipe of an older version could not say yet: those keys had no effect but their default's."""
    if isinstance(recipe, (list, tuple)) and isinstance(before, list) and len(recipe) == len(before):
        return [_with_defaults(old, new) for old, new in zip(before, recipe, strict=True)]
    if not isinstance(before, dict):
        return before
    if isinstance(recipe, dict):
        return {key: _with_defaults(value, recipe.get(key)) for key, value in before.items()}
    if not dataclasses.is_dataclass(recipe) or isinstance(recipe, type):
        return before
    filled = {key: _with_defaults(value, getattr(recipe, key, None)) for key, value in before.items()}
    for field in dataclasses.fields(recipe):
        if field.name not in before:
            if field.default is not dataclasses.MISSING:
                filled[field.name] = to_plain(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                filled[field.name] = to_plain(field.default_factory())
    return filled


def _differences(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from _differences(before.get(key), after.get(key), f"{prefix}{key}.")
    elif before != after:
        yield prefix.rstrip(".")
