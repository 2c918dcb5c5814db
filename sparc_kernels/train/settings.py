"""Configurations from files: those that users write, and those that runs leave behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sparc_kernels.train.config import PRESETS, TrainConfig, check_keys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SWITCHES = ("compare",)  # what a file may say that is no field of the configuration


def configured(options: dict[str, Any]) -> TrainConfig:
    """The configuration of a new run. A short one warms up for a quarter of its steps, unless told otherwise."""
    if "steps" in options and "warmup_steps" not in options:
        options = options | {"warmup_steps": min(TrainConfig.warmup_steps, options["steps"] // 4)}
    return TrainConfig(**options)


def with_file(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a ``.toml`` or ``.json`` file with those given, which come first."""
    values = _read(path)
    try:
        check_keys(values, SWITCHES)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    values = {name: value for name, value in values.items() if value is not None}
    if path.suffix.lower() == ".json" and "preset" in options:
        # A run writes down the rate that its preset gave it, which is not the rate of another preset.
        preset = PRESETS.get(values.get("preset", TrainConfig.preset))
        if preset and values.get("lr") == preset.lr:
            del values["lr"]
    together = values | options
    if path.suffix.lower() == ".json" and together.get("compare") and "loss" not in options:
        together.pop("loss", None)  # which a comparison writes down and does not use
    return together


def of_run(folder: Path, options: dict[str, Any]) -> tuple[TrainConfig, bool]:
    """What a run wrote, with the options given now on top, and whether it was a comparison."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no run to resume in {str(folder)!r}: it has no config.json")
    values = _read(path)
    compare = bool(values.pop("compare", False))
    values["out"] = str(folder)
    options = {name: value for name, value in options.items() if name != "out"}
    return TrainConfig.from_dict(values | options), compare


def _read(path: Path) -> dict[str, Any]:
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix.lower() not in readers:
        raise ValueError(f"a configuration must be a .toml or .json file, got {str(path)!r}")
    try:
        values = readers[path.suffix.lower()](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{str(path)!r} cannot be read as a configuration: {why}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} cannot be read as a configuration: it holds no names with values")
    return values
