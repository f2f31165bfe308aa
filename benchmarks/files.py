"""Files of one run. Everything is written beside its place and renamed, so a kill leaves the old state or the new one."""

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

COLUMNS = (
    "timesteps",
    "return_deterministic",
    "return_stochastic",
    "return_base",
    "overestimation",
    "train_overestimation",
    "mean_q",
    "ent_coef",
    "cpu_seconds",
)
"""Of the returns benchmark."""
Row = dict[str, float]


def write_text(path: Path, text: str) -> None:
    """
    :param path: the file to replace
    :param text: its new content
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@dataclass(frozen=True)
class RunFiles:
    """
    Where one run lives: ``<folder>/<variant>_seed<k>.csv`` and its siblings.

    :param stem: the path without suffix
    """

    stem: Path

    @classmethod
    def of(cls, output: Path, env_id: str, variant: str, seed: int) -> "RunFiles":
        return cls(output / env_id.replace("/", "-") / f"{variant}_seed{seed}")

    def _sibling(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def csv(self) -> Path:
        return self._sibling(".csv")

    @property
    def config(self) -> Path:
        return self._sibling(".json")

    @property
    def log(self) -> Path:
        return self._sibling(".log")

    @property
    def lock(self) -> Path:
        return self._sibling(".lock")

    @property
    def checkpoints(self) -> Path:
        return self._sibling(".checkpoints")

    @property
    def model(self) -> Path:
        return self._sibling(".zip")

    def write_model(self, model: BaseAlgorithm) -> None:
        temporary = self._sibling(".tmp.zip")
        model.save(temporary)
        os.replace(temporary, self.model)

    def read_config(self) -> dict[str, Any] | None:
        return json.loads(self.config.read_text(encoding="utf-8")) if self.config.exists() else None

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_text(self.config, json.dumps(config, indent=2, sort_keys=True) + "\n")

    def read_rows(self) -> list[Row]:
        if not self.csv.exists():
            return []
        with open(self.csv, newline="", encoding="utf-8") as file:
            return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]

    def write_rows(self, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
        lines = [",".join(columns)]
        lines += [",".join("" if row[key] != row[key] else f"{row[key]:.10g}" for key in columns) for row in rows]
        write_text(self.csv, "\n".join(lines) + "\n")

    def is_finished(self, steps: int) -> bool:
        rows = self.read_rows()
        return bool(rows) and rows[-1]["timesteps"] >= steps

    def latest_checkpoint(self) -> Path | None:
        folders = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        complete = [folder for folder in folders if folder.name.isdigit()]
        return max(complete, key=_step_of) if complete else None

    def drop_checkpoints(self, keep: Path | None = None) -> None:
        for folder in list(self.checkpoints.iterdir()) if self.checkpoints.exists() else []:
            if folder != keep:
                shutil.rmtree(folder)
        if keep is None and self.checkpoints.exists():
            self.checkpoints.rmdir()


def _step_of(folder: Path) -> int:
    return int(folder.name)
