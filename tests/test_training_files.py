"""What training writes, and what it refuses before it begins."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffuser_policy.config import (
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError, DatasetError, StorageError
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.trainer import Trainer
from tests.file_helpers import full_disk
from tests.training_helpers import trained


def test_metrics_are_logged_at_every_checkpoint(tmp_path: Path) -> None:
    seen: list[int] = []
    trained(tmp_path, save_interval=4, on_metrics=lambda step, _: seen.append(step))
    lines = (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 6] == seen
    assert set(json.loads(lines[0])) == {"step", "denoiser", "time_to_goal"}


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A trainer whose loss is the number of the gradient step."""
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")
    descend = trainer._descend

    def descend_with_a_known_loss() -> dict[str, float]:
        descend()
        return {"denoiser": float(trainer.step)}

    monkeypatch.setattr(trainer, "_descend", descend_with_a_known_loss)
    return trainer


def losses(output: Path) -> dict[int, float]:
    """Return the losses that a training wrote, by gradient step."""
    lines = (output / "training" / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["denoiser"] for line in map(json.loads, lines)}


def test_after_ctrl_c_the_losses_of_all_finished_steps_are_told(
    tmp_path: Path, counting: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend, heard = counting._descend, []

    def interrupted() -> dict[str, float]:
        if counting.step == 2:
            signal.raise_signal(signal.SIGINT)
        return descend()

    monkeypatch.setattr(counting, "_descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        counting.run(
            save_interval=2,
            progress=False,
            on_metrics=lambda step, _: heard.append(step),
        )
    Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")  # would resume
    assert losses(tmp_path) == {2: (1 + 2) / 2, 3: 3.0}
    assert heard == [2, 3]


def test_losses_are_means_since_the_last_checkpoint(
    tmp_path: Path, counting: Trainer
) -> None:
    counting.run(save_interval=4, progress=False)
    assert losses(tmp_path) == {4: (1 + 2 + 3 + 4) / 4, 6: (5 + 6) / 2}


@pytest.mark.parametrize(
    ("full_at", "means"),
    [(4, {2: 1.5, 6: (3 + 4 + 5 + 6) / 4}), (6, {2: 1.5, 4: 3.5, 6: 5.5})],
)
def test_losses_since_a_checkpoint_that_failed_are_told_with_the_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counting: Trainer,
    full_at: int,
    means: dict[int, float],
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        return full_disk() if counting.step == full_at else write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="Free some space"):
            counting.run(save_interval=2, progress=False)
    counting.run(save_interval=2, progress=False)
    assert losses(tmp_path) == means


def test_half_a_line_of_losses_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Trainer
) -> None:
    @contextlib.contextmanager
    def half(path: Path, *arguments: Any, **settings: Any) -> Iterator[Any]:
        def write(text: str) -> None:
            file.write(text[:7])
            file.flush()
            full_disk()

        with opened(path, *arguments, **settings) as file:
            full = path.name == "metrics.jsonl" and counting.step == 4
            yield SimpleNamespace(write=write) if full else file

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half)
        with pytest.raises(StorageError, match="Free some space"):
            counting.run(save_interval=2, progress=False)
    counting.run(save_interval=2, progress=False)
    assert losses(tmp_path) == {2: 1.5, 6: (3 + 4 + 5 + 6) / 4}


def test_progress_is_shown_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")
    trainer.run(progress=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "step/s" in shown


def test_a_full_disk_keeps_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if trainer.step > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="Free some space"):
            trainer.run(save_interval=2, progress=False)
    names = sorted(path.name for path in (tmp_path / "training").iterdir())
    assert names == ["lock", "metrics.jsonl", "settings.json", "step-00000002"]
    assert DiffuserPolicy.from_pretrained(tmp_path).config.provenance["steps"] == 2
    resumed = trained(tmp_path, save_interval=2)
    assert resumed.step == 6


def test_a_disk_too_full_for_the_losses_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")
    open_path = Path.open

    def full(path: Path, *arguments: Any, **settings: Any) -> Any:
        if path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_path(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"metrics\.jsonl.*Free some space"):
        trainer.run(save_interval=2, progress=False)
    assert DiffuserPolicy.from_pretrained(tmp_path).config.provenance["steps"] == 2


@pytest.mark.parametrize("save_interval", [0, -1])
def test_no_interval_between_checkpoints_is_refused(
    tmp_path: Path, save_interval: int
) -> None:
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="must be at least 1"):
        trainer.run(save_interval=save_interval, progress=False)
    assert trainer.step == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused(bad: float) -> None:
    flat = toy_dataset()
    observation = flat.fields["observation"].copy()
    observation[5, 1] = bad
    with pytest.raises(DatasetError, match="not finite"):
        FlatDataset(
            {**flat.fields, "observation": observation}, flat.run_starts, flat.metadata
        )


def test_a_dataset_shorter_than_the_window_is_refused(tmp_path: Path) -> None:
    config = toy_config(window=WindowConfig(horizon=62))
    with pytest.raises(DatasetError, match="longest continuous run has 60"):
        Trainer(config, toy_dataset(), tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_goal_that_the_data_lack_is_refused(tmp_path: Path) -> None:
    config = toy_config(time_to_goal=None)
    with pytest.raises(ConfigError, match="no goal columns"):
        Trainer(config, toy_dataset(goals=False), tmp_path, device="cpu")
