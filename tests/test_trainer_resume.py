"""A run that is killed or interrupted at any moment ends as if it never had been."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.checkpoint import read_planner, write_planner
from diffuser_policy.config import TrainConfig, ValueConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import hidden_sibling
from diffuser_policy.interrupts import held_interrupt
from diffuser_policy.settings import differences
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.state import Parts, checkpoints, save_state
from diffuser_policy.training.trainer import Trainer
from tests import classifier_helpers, value_helpers
from tests.training_helpers import weights

PLANNER = ("model.safetensors", "config.json")


def make_trainer(output: Path, config: TrainConfig | None = None) -> Trainer:
    return Trainer(config or toy_config(), toy_dataset(), output, device="cpu")


def result(output: Path) -> dict[str, bytes]:
    """Return what a run leaves: the planner, and the last checkpoint's tensors."""
    files = {name: (output / name).read_bytes() for name in PLANNER}
    last = checkpoints(output / "training")[-1]
    return {**files, last.name: (last / "tensors.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(output).run(progress=False)
    return output


@pytest.fixture
def finished(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(whole_run: Path) -> dict[str, bytes]:
    return result(whole_run)


# --- killed -----------------------------------------------------------------------

KILLED = """
    import os, signal, sys, threading, time
    from pathlib import Path

    import torch._dynamo  # by optimizers, at their first step; once for all children

    from diffuser_policy.config import OptimizationConfig
    from diffuser_policy.testing import toy_config, toy_dataset
    from diffuser_policy.interrupts import held_interrupt
    from diffuser_policy.training.trainer import Trainer

    NUM_STEPS = 15
    CONFIG = toy_config(
        optimization=OptimizationConfig(num_steps=NUM_STEPS, batch_size=2)
    )

    def kill_after(trainer, step, delay):
        while trainer.step < step:
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_within_write(number):
        write_bytes, count = Path.write_bytes, 0

        def write(path, data):
            nonlocal count
            count += 1
            if count == number:
                write_bytes(path, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write_bytes(path, data)

        Path.write_bytes = write

    def train(output, step=None, delay=0.0, write=None):
        trainer = Trainer(CONFIG, toy_dataset(), Path(output), device="cpu")
        if step is not None:
            watch = threading.Thread(
                target=kill_after, args=(trainer, step, delay), daemon=True
            )
            watch.start()
        if write is not None:
            kill_within_write(write)
        trainer.run(save_interval=3, progress=False)

    def status(output, **kill):
        child = os.fork()
        if child == 0:
            train(output, **kill)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    folder, *moments = sys.argv[1:]
    assert status(f"{folder}/whole") == 0
    for moment in moments:
        step, delay, write = moment.split(",")
        kill = {"write": int(write)} if write else {}
        if step:
            kill |= {"step": int(step), "delay": float(delay)}
        assert status(f"{folder}/killed", **kill) == signal.SIGKILL, moment
        left = Path(folder, "killed", "training")  # absent if killed before a save
        print(sorted(os.listdir(left)) if left.exists() else "nothing yet")
    assert status(f"{folder}/killed") == 0
"""


def test_killed_at_random_moments_and_resumed_equals_never_killed(
    tmp_path: Path,
) -> None:
    """Three SIGKILLs between two instructions, and two in the middle of a write."""
    moments = [
        f"{random.randrange(low, low + 4)},{random.uniform(0, 0.01):.4f},"
        for low in (1, 5, 9)
    ]
    # Of a checkpoint's writes, the first is tensors.safetensors, the fourth the
    # planner's weights.
    moments += [",,1", ",,4"]
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), *moments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert process.returncode == 0, (moments, process.stdout, process.stderr)
    whole, killed = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, content in whole.items():
        assert content == killed[name], (moments, name)


def test_a_kill_between_the_last_checkpoint_and_the_planner_is_made_good(
    finished: Path, uninterrupted: dict[str, bytes]
) -> None:
    for name in PLANNER:
        (finished / name).unlink()
    make_trainer(finished).run(progress=False)
    assert result(finished) == uninterrupted


# --- interrupted ------------------------------------------------------------------


def press_ctrl_c(trainer: Trainer, *, at_step: int, times: int = 1) -> None:
    """Press Ctrl-C within a gradient step, between the loss and the optimizer."""
    step = trainer.optimizer.step

    def pressed(*arguments: Any, **settings: Any) -> Any:
        if trainer.step == at_step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return step(*arguments, **settings)

    trainer.optimizer.step = pressed  # type: ignore[method-assign]


@pytest.mark.parametrize("at_step", [0, 2, 5])
def test_ctrl_c_finishes_the_step_and_saves(
    tmp_path: Path, uninterrupted: dict[str, bytes], at_step: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path)
    press_ctrl_c(trainer, at_step=at_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints(tmp_path / "training")[-1].name == f"step-{at_step + 1:08d}"
    make_trainer(tmp_path).run(progress=False)
    assert result(tmp_path) == uninterrupted


def test_a_second_ctrl_c_stops_at_once_and_saves_nothing(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    trainer = make_trainer(tmp_path)
    press_ctrl_c(trainer, at_step=3, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(save_interval=2, progress=False)
    assert trainer.step == 3
    assert checkpoints(tmp_path / "training")[-1].name == "step-00000002"
    make_trainer(tmp_path).run(progress=False)
    assert result(tmp_path) == uninterrupted


def test_nothing_is_held_outside_the_main_thread(tmp_path: Path) -> None:
    asked: list[bool] = []

    def run() -> None:
        with held_interrupt() as interrupted:
            asked.append(interrupted())
        make_trainer(tmp_path).run(progress=False)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]
    assert checkpoints(tmp_path / "training")


# --- resumed ----------------------------------------------------------------------


@pytest.mark.parametrize("save_interval", [1, 4, 100])
def test_the_save_interval_does_not_matter(
    tmp_path: Path, uninterrupted: dict[str, bytes], save_interval: int
) -> None:
    make_trainer(tmp_path).run(save_interval=save_interval, progress=False)
    assert result(tmp_path) == uninterrupted


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    make_trainer(tmp_path).run(save_interval=1, progress=False)
    names = [path.name for path in checkpoints(tmp_path / "training")]
    assert names == ["step-00000005", "step-00000006"]


def test_checkpoints_are_found_and_deleted_after_100_million_steps(
    tmp_path: Path,
) -> None:
    parts: Parts = {"network": torch.nn.Linear(1, 1)}
    for step in (99_999_998, 99_999_999, 100_000_000, 100_000_001):
        save_state(tmp_path, step, parts)
    names = ["step-100000000", "step-100000001"]
    assert [path.name for path in checkpoints(tmp_path)] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_finished_run_stays_as_it_is(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    for _ in range(2):
        make_trainer(tmp_path).run(progress=False)
        assert result(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "seed: 0 → 3"),
        ({"dataset": "toy/other-v0"}, "dataset: toy/point-v0 → toy/other-v0"),
        ({"time_to_goal": None}, "time_to_goal"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    finished: Path, change: dict[str, Any], message: str
) -> None:
    before = result(finished)
    with pytest.raises(ConfigError, match=message):
        make_trainer(finished, dataclasses.replace(toy_config(), **change))
    assert result(finished) == before


LONGER = ValueConfig(dim=16, multipliers=(1, 4))
BESIDE: dict[str, Any] = {"value": value_helpers, "classifier": classifier_helpers}


@pytest.mark.parametrize("part", BESIDE)
def test_what_is_trained_beside_a_planner_resumes_as_if_never_stopped(
    part: str, tmp_path: Path
) -> None:
    make = BESIDE[part].make_trainer
    make(tmp_path / "whole").run(progress=False)
    broken = make(tmp_path / "broken")
    for _ in range(3):
        broken._descend()
    broken.save()
    resumed = make(tmp_path / "broken")
    assert resumed.step == 3
    resumed.run(progress=False)
    found, expected = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        *((part, {"seed": 1}, "seed: 0 → 1") for part in BESIDE),
        *((part, {"policy": toy_policy(seed=1)}, "weights:") for part in BESIDE),
        ("value", {"value": LONGER}, r"discount: 0\.9 → 0\.997"),
        ("value", {"flat": value_helpers.rewarded(seed=1)}, r"data\.checksum"),
        ("classifier", {"flat": toy_dataset(num_runs=4)}, r"data\."),
    ],
)
def test_a_folder_of_another_run_beside_a_planner_is_refused(
    part: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make = BESIDE[part].make_trainer
    make(tmp_path).save()
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **change)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("observation", "checksum"),
        ("action", "checksum"),
        ("run_starts", "checksum"),
        ("reward", "others"),
        ("terminated", "others"),
    ],
)
def test_other_data_of_the_same_name_are_refused(
    finished: Path, changed: str, named: str
) -> None:
    flat = toy_dataset()
    fields, starts = dict(flat.fields), flat.run_starts
    if changed == "run_starts":
        starts = np.delete(starts, 1)
    else:
        fields[changed] = fields[changed].copy()
        fields[changed].reshape(len(fields[changed]), -1)[7, 0] += (
            0.001 if changed == "action" else 1
        )
    other = FlatDataset(fields, starts, flat.metadata)
    with pytest.raises(ConfigError, match=rf"data\.{named}"):
        Trainer(toy_config(), other, finished, device="cpu")


def test_another_number_of_rows_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.num_rows"):
        Trainer(toy_config(), toy_dataset(1), finished, device="cpu")


def test_another_number_of_processes_is_refused(finished: Path) -> None:
    two = dataclasses.replace(Processes.single("cpu"), num_processes=2)
    with pytest.raises(ConfigError, match="num_processes: 1 → 2"):
        Trainer(toy_config(), toy_dataset(), finished, processes=two)


def test_a_finished_run_keeps_the_figures_of_its_planner(finished: Path) -> None:
    """They are of these weights, whoever starts the training again."""
    found = {
        "toy/Point-v0": {"episodes": 3, "score": {"mean": 1.0, "low": 0.5, "high": 1.5}}
    }
    config, networks = read_planner(finished)
    write_planner(finished, config, networks, provenance={"results": found})
    make_trainer(finished).run(progress=False)
    config, networks = read_planner(finished)
    assert config.provenance["results"] == found
    planner = dataclasses.replace(config.planner, temperature=0.5)
    other = dataclasses.replace(config, planner=planner, provenance={})
    write_planner(finished, other, networks)
    assert "results" not in read_planner(finished)[0].provenance


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_step_is_saved_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    saved: list[int] = []

    def counted(folder: Path, step: int, parts: Parts) -> Path:
        saved.append(step)
        return save_state(folder, step, parts)

    monkeypatch.setattr("diffuser_policy.training.run.save_state", counted)
    trainer = make_trainer(tmp_path)
    if interrupted:
        press_ctrl_c(trainer, at_step=3)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(save_interval=2, progress=False)
    else:
        trainer.run(save_interval=2, progress=False)
    assert saved == ([2, 4] if interrupted else [2, 4, 6])


def test_leftovers_of_a_killed_process_are_removed(finished: Path) -> None:
    before = sorted(finished.rglob("*"))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mark = hidden_sibling(finished / "x", "partial").name.split(".")[2]
    dead = mark.replace(f"{os.getpid()}-", f"{child.pid}-")
    kept = finished / f".results.json.{mark}.partial"  # its writer lives
    for name in (
        f".model.safetensors.{dead}.partial",
        f"training/.settings.json.{dead}.partial",
        f"training/.step-00000009.{dead}.partial/tensors.safetensors",
        kept.name,
    ):
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).touch()
    other = dataclasses.replace(Processes.single("cpu"), rank=1)
    Trainer(toy_config(), toy_dataset(), finished, processes=other)
    assert len(list(finished.rglob(".*"))) == 4
    make_trainer(finished)
    assert sorted(finished.rglob("*")) == sorted([*before, kept])


def test_differences_are_named_by_their_path() -> None:
    saved = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert differences(saved, saved) == []
    other = {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert differences(saved, other) == [
        "a.b: 1 → 2",
        "d: None → not set",
        "e: not set → 3",
    ]
    assert differences(saved, other, missing=None) == ["a.b: 1 → 2", "e: None → 3"]


# --- one run, one folder ----------------------------------------------------------


def test_two_trainings_in_one_folder_are_refused(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    first = make_trainer(tmp_path)
    refused: list[str] = []

    def second(*_: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            make_trainer(tmp_path)
        refused.append(str(caught.value))

    first.run(save_interval=2, progress=False, on_metrics=second)
    assert len(refused) == 3
    assert "Another process is training in" in refused[0]
    assert result(tmp_path) == uninterrupted


def test_two_trainings_that_begin_together_are_refused(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    first, second = make_trainer(tmp_path), make_trainer(tmp_path)

    def too_late(*_: Any) -> None:
        with pytest.raises(ConfigError, match="Another process is training in"):
            second.run(progress=False)

    first.run(save_interval=2, progress=False, on_metrics=too_late)
    with pytest.raises(ConfigError, match="trained to step 6 since this trainer was"):
        second.run(progress=False)
    assert result(tmp_path) == uninterrupted


def test_settings_are_written_before_the_first_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    written: list[bool] = []
    step = trainer.optimizer.step

    def first(*arguments: Any, **settings: Any) -> Any:
        written.append((tmp_path / "training" / "settings.json").exists())
        return step(*arguments, **settings)

    trainer.optimizer.step = first  # type: ignore[method-assign]
    trainer.run(progress=False)
    assert written[0]


def test_settings_without_any_work_bind_nobody(tmp_path: Path) -> None:
    """A training was killed before its first checkpoint: there is nothing to mix."""
    trainer = make_trainer(tmp_path)
    with trainer._at_work():
        pass
    other = dataclasses.replace(toy_config(), seed=3)
    make_trainer(tmp_path, other).run(progress=False)
    saved = json.loads((tmp_path / "training" / "settings.json").read_text())
    assert saved["seed"] == 3


@pytest.mark.parametrize("damaged", ["{", "3"])
def test_damaged_settings_are_refused_with_advice(finished: Path, damaged: str) -> None:
    (finished / "training" / "settings.json").write_text(damaged)
    with pytest.raises(CheckpointError, match=r"settings\.json cannot be read"):
        make_trainer(finished)


def test_a_folder_in_the_place_of_the_losses_is_refused_with_advice(
    finished: Path,
) -> None:
    path = finished / "training" / "metrics.jsonl"
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be .* Move it"):
        make_trainer(finished)
    path.rmdir()
    assert make_trainer(finished).step == 6


# --- broken checkpoints -----------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("interrupted")
    trainer = make_trainer(output)
    press_ctrl_c(trainer, at_step=3)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(save_interval=2, progress=False)
    return output


@pytest.fixture
def half_done(interrupted_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that was interrupted after its fourth step."""
    shutil.copytree(interrupted_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_unfinished_folders_are_ignored(half_done: Path) -> None:
    (half_done / "training" / "step-00000009").mkdir()
    partial = half_done / "training" / ".step-00000005.123-abc.partial"
    shutil.copytree(checkpoints(half_done / "training")[-1], partial)
    trainer = make_trainer(half_done)
    assert trainer.step == 4


@pytest.mark.parametrize("kept", [0, 1000])
def test_a_truncated_checkpoint_is_refused_with_advice(
    half_done: Path, kept: int, uninterrupted: dict[str, bytes]
) -> None:
    last = checkpoints(half_done / "training")[-1]
    tensors = last / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="Delete it to resume from the"):
        make_trainer(half_done)
    shutil.rmtree(last)
    make_trainer(half_done).run(progress=False)
    assert result(half_done) == uninterrupted


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_flipped_bit_in_a_checkpoint_is_refused(half_done: Path, name: str) -> None:
    path = checkpoints(half_done / "training")[-1] / name
    whole = path.read_bytes()
    # Of a state, the checksum: a bit of a blank says nothing.
    begin = whole.find(b'"sha256": "') + 11 if name == "state.json" else 0
    for place in random.Random(0).sample(range(8 * begin, 8 * (len(whole) - 2)), 6):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            make_trainer(half_done)


def test_losses_of_steps_to_take_again_are_dropped(half_done: Path) -> None:
    path = half_done / "training" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 5, "denoiser": 1.0}\n{"step": 6, "deno')
    make_trainer(half_done).run(save_interval=2, progress=False)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [2, 4, 6]


@pytest.mark.parametrize(
    "line",
    [b"\0" * 40, b"\xff\xfe", b"[1]", b"3", b"{}", b'{"step": "two"}', b"", b"{"],
)
def test_losses_that_cannot_be_read_are_dropped(half_done: Path, line: bytes) -> None:
    path = half_done / "training" / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    make_trainer(half_done).run(save_interval=2, progress=False)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_a_checkpoint_of_another_step_than_it_says_is_refused(half_done: Path) -> None:
    last = checkpoints(half_done / "training")[-1]
    last.rename(last.with_name("step-00000005"))
    with pytest.raises(CheckpointError, match=r"step-00000005.*to be of step 4"):
        make_trainer(half_done)


def test_a_checkpoint_of_another_schema_is_refused(half_done: Path) -> None:
    state = checkpoints(half_done / "training")[-1] / "state.json"
    state.write_text(json.dumps({"schema": 99, "step": 4}))
    with pytest.raises(CheckpointError, match="schema 99"):
        make_trainer(half_done)


def test_a_checkpoint_of_another_network_is_refused(half_done: Path) -> None:
    (half_done / "training" / "settings.json").unlink()
    network = dataclasses.replace(toy_config().network, dim=16)
    with pytest.raises(CheckpointError, match="not hold the network"):
        make_trainer(half_done, dataclasses.replace(toy_config(), network=network))


def test_the_optimizers_moments_are_restored(half_done: Path) -> None:
    """The step after a resume uses them: without, Adam would start anew."""
    resumed = make_trainer(half_done)
    states = resumed.optimizer.state_dict()["state"]
    assert {int(state["step"]) for state in states.values()} == {4}
    assert any(torch.any(state["exp_avg_sq"] > 0) for state in states.values())
    assert resumed.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
