"""Reading what a run left: whatever is missing or damaged becomes a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustmim.errors import InputError
from robustmim.runs import read_json, read_lines


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what goes wrong in the block into an InputError that names the file and what to do.

    Raises:
        InputError: a key is missing, or a value is not of its kind.
    """
    try:
        yield
    except KeyError as error:
        raise InputError(f"{path} is damaged: it has no {error}; {remedy}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: missing, damaged, or something else.
    """
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return content


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read log.jsonl.

    Raises:
        InputError: missing, or without a single whole line.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; run the training again, with the same --out")
    rows = [row for row in read_lines(path) if isinstance(row, dict)]
    if not rows:
        raise InputError(f"{path} is damaged: no line in it can be read; run the training again")
    return rows


@dataclass(frozen=True)
class Examples:
    """The pictures of an evaluation: arrays by name, class names, and the budget of the attack."""

    arrays: dict[str, np.ndarray]
    classes: tuple[str, ...]
    radius: str

    def answer(self, name: str, place: int) -> str:
        """Return the class that was predicted for (or, with "label", is) a picture."""
        number = int(self.arrays[name][place])
        return self.classes[number] if 0 <= number < len(self.classes) else f"class {number}"


def read_examples(path: Path) -> Examples:
    """Read examples.safetensors.

    Raises:
        InputError: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "run the evaluation again"
    if not path.exists():
        raise InputError(f"{path} does not exist; {remedy}")
    with reading(path, remedy):
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged ({error}); {remedy}") from error
        for name in ("clean", "attacked", "label", "predicted_clean", "predicted_attacked"):
            arrays[name]
        return Examples(arrays, tuple(json.loads(about["classes"])), about["radius"])
