"""Planners on disk: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffuser_policy import checkpoint, files
from diffuser_policy.baselines.learning import load_parts, save_parts
from diffuser_policy.build import weight_checksum
from diffuser_policy.checkpoint import CARD, CONFIG, WEIGHTS, locate, read_planner
from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    StorageError,
)
from diffuser_policy.files import hidden_sibling
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_policy
from diffuser_policy.training.state import Parts
from diffuser_policy.training.trainer import Trainer
from tests.file_helpers import Malicious, mapped
from tests.policy_helpers import observe
from tests.training_helpers import trained


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "planner"
    toy_policy().save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / CONFIG).read_text())
    change(data)
    (folder / CONFIG).write_text(json.dumps(data))


def figures(of_one: Any) -> Callable[[dict[str, Any]], object]:
    """Return a change of the figures of an environment."""
    return lambda data: data["provenance"].update(results={"toy/Point-v0": of_one})


def swap(data: dict[str, Any], first: str, second: str) -> None:
    data[first], data[second] = data[second], data[first]


# --- round trip -------------------------------------------------------------------


def test_a_planner_round_trips_bit_for_bit(saved: Path) -> None:
    policy, loaded = toy_policy(), DiffuserPolicy.from_pretrained(saved)
    before, after = policy.networks.state_dict(), loaded.networks.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    expected, _ = policy.predict(observe(2), deterministic=True)
    action, _ = loaded.predict(observe(2), deterministic=True)
    assert (action == expected).all()


def test_settings_round_trip(saved: Path) -> None:
    ours = json.loads(json.dumps(toy_policy().config.to_json()))
    theirs = json.loads(json.dumps(read_planner(saved)[0].to_json()))
    assert theirs["provenance"].pop("versions")["torch"] == torch.__version__
    assert ours == theirs


def test_saving_again_changes_nothing(saved: Path) -> None:
    before = contents(saved)
    DiffuserPolicy.from_pretrained(saved).save_pretrained(saved)
    assert contents(saved) == before
    assert set(before) == {WEIGHTS, CONFIG, CARD}


def test_settings_can_be_changed_while_loading(saved: Path) -> None:
    policy = DiffuserPolicy.from_pretrained(saved, seed=5, num_candidates=3)
    assert policy.planner.num_candidates == 3
    assert policy.seed == 5
    with pytest.raises(LookupError, match="Did you mean 'num_candidates'"):
        DiffuserPolicy.from_pretrained(saved, num_candidate=3)


def test_settings_mend_a_planner_whose_saved_ones_cannot_work_here(
    tmp_path: Path,
) -> None:
    policy = toy_policy()
    execution = replace(policy.config.execution, executor="inverse-dynamics")
    config = replace(policy.config, execution=execution)
    checkpoint.write_planner(tmp_path, config, policy.networks)
    with pytest.raises(ConfigError, match="inverse-dynamics"):
        DiffuserPolicy.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="inverse-dynamics"):
        DiffuserPolicy.from_pretrained(tmp_path, num_candidates=3)
    mended = DiffuserPolicy.from_pretrained(tmp_path, executor="tracking")
    seen = observe(2)
    action, _ = mended.predict(seen, deterministic=True)
    expected, _ = policy.with_settings(executor="tracking").predict(
        seen, deterministic=True
    )
    np.testing.assert_array_equal(action, expected)


def test_loaded_weights_are_not_trained_further(saved: Path) -> None:
    networks = read_planner(saved)[1]
    assert not networks.training
    assert not any(parameter.requires_grad for parameter in networks.parameters())


def test_the_card_says_what_the_planner_is(saved: Path) -> None:
    card = (saved / CARD).read_text()
    assert card.startswith("---\n")
    for fact in ("toy/Point-v0", "toy/point-v0", "16 env steps", "from_pretrained"):
        assert fact in card
    assert "- Plans: actions and observations\n" in card
    assert "- Network: plain, architecture `unet`, width 8\n" in card


@pytest.mark.parametrize("goals", [True, False])
def test_the_card_has_success_rates_if_there_are_goals(
    goals: bool, tmp_path: Path
) -> None:
    result: dict[str, Any] = {
        "episodes": 100,
        "score": {"mean": 97.25, "low": 95.0, "high": 99.0},
        "success_rate": {"mean": 1.0, "low": 0.9, "high": 1.0} if goals else None,
    }
    policy = toy_policy()
    facts = {**policy.config.provenance, "results": {"toy/Point-v0": result}}
    config = replace(policy.config, provenance=facts)
    DiffuserPolicy(config, policy.networks).save_pretrained(tmp_path)
    head, rule, row = (tmp_path / CARD).read_text().splitlines()[-3:]
    assert head.endswith("| score | success |" if goals else "| episodes | score |")
    assert rule == "|---" * (4 if goals else 3) + "|"
    rate = " | 100% |" if goals else " |"
    assert row == f"| toy/Point-v0 | 100 | 97.2 [95.0, 99.0]{rate}"


@dataclass(frozen=True)
class Near(Guide):
    """A guide that compares like the array that it holds."""

    place: np.ndarray

    def __call__(self, trajectory: Trajectory) -> torch.Tensor:
        away = trajectory.position - torch.from_numpy(self.place)
        return -away.square().sum(dim=(1, 2))


def test_figures_stay_with_the_planner_that_earned_them(tmp_path: Path) -> None:
    score = {"mean": 97.25, "low": None, "high": None}
    earned = {"toy/Point-v0": {"episodes": 9, "score": score}}
    policy = toy_policy()
    facts = {**policy.config.provenance, "results": earned}
    policy = DiffuserPolicy(replace(policy.config, provenance=facts), policy.networks)
    kept = {"num_candidates": policy.config.planner.num_candidates}
    for same in (policy, policy.with_settings(**kept), policy.with_guide(None)):
        assert same.config.provenance["results"] == earned
    steered = policy.with_guide(lambda trajectory: trajectory.position.sum(dim=(1, 2)))
    assert "results" not in steered.config.provenance
    for _ in range(2):  # fields of guides may be arrays
        steered = steered.with_guide(Near(np.zeros(2)))
    for name, value in {"num_candidates": 1, "position_gain": 0.0}.items():
        policy.with_settings(**{name: value}).save_pretrained(tmp_path / name)
        assert "| 9 |" not in (tmp_path / name / CARD).read_text()
        assert read_planner(tmp_path / name)[0].provenance["dataset"]


# --- broken and foreign folders ---------------------------------------------------


@pytest.mark.parametrize("kept", [0, 7, 1000])
def test_truncated_weights_are_refused(saved: Path, kept: int) -> None:
    weights = saved / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="missing, truncated, or no safetensors"):
        read_planner(saved)


def test_missing_weights_are_refused(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="missing, truncated, or no safetensors"):
        read_planner(saved)


def test_pickled_weights_are_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (saved / WEIGHTS).write_bytes(pickle.dumps(Malicious(witness)))
    with pytest.raises(CheckpointError, match="never loaded"):
        read_planner(saved)
    assert not witness.exists()


def test_weights_of_another_network_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    network = NetworkConfig(dim=16, multipliers=(1, 2), num_denoising_steps=8)
    toy_policy(toy_config(network=network)).save_pretrained(other)
    shutil.copy(other / WEIGHTS, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"not hold the weights that config"):
        read_planner(saved)


def test_extra_and_missing_tensors_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    save_file({**tensors, "extra": torch.zeros(1)}, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match="extra"):
        read_planner(saved)
    tensors.popitem()
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match="Missing key"):
        read_planner(saved)


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1', "\x00\x01"])
def test_unreadable_settings_are_refused(saved: Path, text: str) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_planner(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.update(schema=99),
            "schema 99, this version .* schema 1",
        ),
        (
            lambda data: data.update(schema="1"),
            "schema '1', this version .* schema 1",
        ),
        (lambda data: data.pop("schema"), "no 'schema'"),
        (lambda data: data.pop("network"), "lacks settings.*network"),
        (lambda data: data["network"].update(breadth=3), "not know.*breadth"),
        (lambda data: data["network"].update(dim="x"), "must be a whole number"),
        (lambda data: data["planner"].update(sampler="heun"), "heun"),
        (lambda data: data.update(layout=None), "lacks settings"),
        (lambda data: data["window"].update(stride=0), "stride must be positive"),
        (lambda data: data["window"].update(horizon=10**15), "horizon must be at most"),
        (lambda data: data["network"].update(depth=10**9), "depth must be at most"),
        (lambda data: data["network"].update(dim=10**6), "describes .* weights, and"),
        (lambda data: data["network"].update(multipliers=[]), "multipliers must be"),
        (
            lambda data: data["network"].update(multipliers=[1, 0]),
            "multipliers must be",
        ),
        (lambda data: data["layout"].update(observation_dim=10**12), "at most 1,000,0"),
        (lambda data: data["layout"].update(observation_dim=6), "6 observation col"),
        (lambda data: data["layout"].update(action_dim=1), "1 action columns, and"),
        (lambda data: swap(data["spaces"], "action_low", "action_high"), "low <= high"),
        (lambda data: data["spaces"].update(action_low=[-1]), "got 1 and 2"),
        (lambda data: data["spaces"].update(action_low=None), "action_low.* must be"),
        (lambda data: data["spaces"].update(action_low="ab"), "action_low.* must be"),
        (lambda data: data["window"].update(horizon=None), "horizon.* must be a whole"),
        (lambda data: data.update(provenance=None), "provenance must be a table"),
        (lambda data: data.update(provenance=[1]), "provenance must be a table"),
        (lambda data: data["provenance"].update(dataset=3), "dataset must be a table"),
        (lambda data: data["provenance"]["dataset"].update(env_id=3), "env_id must be"),
        (figures(3), "no model card can show"),
        (figures({"score": None}), "no model card can show.*episodes"),
        (figures({"episodes": 2, "score": 3}), "no model card can show"),
        (figures({"episodes": 2, "score": {"mean": "x", "low": 1, "high": 2}}), "card"),
    ],
)
def test_foreign_settings_are_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_config(saved, change)
    with pytest.raises(CheckpointError, match=message):
        read_planner(saved)


def test_numbers_of_other_people_that_are_not_finite_become_none(saved: Path) -> None:
    """Early versions wrote them, and JSON lacks them."""
    worst = {"best": float("nan"), "range": [0.0, float("inf")]}
    edit_config(saved, lambda data: data["provenance"]["dataset"].update(worst))
    config, networks = read_planner(saved)
    assert config.provenance["dataset"]["best"] is None
    assert config.provenance["dataset"]["range"] == [0.0, None]
    checkpoint.write_planner(saved, config, networks)
    assert read_planner(saved)[0] == config


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_settings_that_are_nested_too_deeply_are_refused(
    saved: Path, depth: int
) -> None:
    text = (saved / CONFIG).read_text()
    nested = '"provenance": {"a": ' + "[" * depth + "]" * depth + ","
    (saved / CONFIG).write_text(text.replace('"provenance": {', nested, 1))
    with contextlib.suppress(CheckpointError):  # shallow enough: saved as well
        config, networks = read_planner(saved)
        checkpoint.write_planner(saved, config, networks)
        assert depth < 100_000


def test_a_folder_without_a_planner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*cannot be read"):
        read_planner(tmp_path)


def test_a_training_that_has_not_saved_a_planner_yet_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(_: Trainer) -> None:
        raise Killed

    monkeypatch.setattr(Trainer, "_descend", killed)
    with pytest.raises(Killed):
        trained(tmp_path)
    with pytest.raises(CheckpointError, match="has not saved a planner yet") as caught:
        read_planner(tmp_path)
    assert "the command that began it resumes it" in str(caught.value)
    assert CONFIG not in str(caught.value)


def test_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "state_100.pt"
    path.touch()
    with pytest.raises(CheckpointError, match="interop"):
        read_planner(path)


def test_a_flipped_bit_in_the_weights_is_refused(saved: Path) -> None:
    refuse_flips(saved, 6)


@pytest.mark.proof
def test_three_hundred_flipped_bits_in_shipped_weights_are_refused(
    tmp_path: Path,
) -> None:
    for name in checkpoint.shipped_planners():
        shutil.copytree(checkpoint.SHIPPED / name, tmp_path / name)
        refuse_flips(tmp_path / name, 75)


def refuse_flips(folder: Path, count: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for place in random.Random(0).sample(range(8 * len(whole)), count):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_planner(folder)
    (folder / WEIGHTS).write_bytes(whole)
    read_planner(folder)


def test_flipped_bits_in_the_checkpoint_of_a_baseline_are_refused(
    tmp_path: Path,
) -> None:
    path, parts = tmp_path / "weights.safetensors", {"net": torch.nn.Linear(3, 2)}
    save_parts(path, parts, step=7, data={"rows": 3})
    assert load_parts(path, parts, data={"rows": 3}) == 7
    whole = path.read_bytes()
    for place in (whole.index(b'"7"') + 1, len(whole) - 1, len(whole) - 9):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="its checksum differs"):
            load_parts(path, parts, data={"rows": 3})


def test_a_baseline_that_resumes_does_not_map_its_checkpoint(tmp_path: Path) -> None:
    """Windows would refuse to replace it."""
    net = torch.nn.Linear(300, 200)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    path = tmp_path / "weights.safetensors"
    parts: Parts = {"net": net, "adam": optimizer}
    save_parts(path, parts, step=1)
    load_parts(path, parts)
    assert mapped(path) == []


def test_planners_without_a_checksum_still_load(saved: Path) -> None:
    edit_config(saved, lambda data: data.pop(checkpoint.CHECKSUM))
    assert read_planner(saved)[0] == read_planner(saved)[0]


@pytest.mark.parametrize("name", checkpoint.shipped_planners())
def test_shipped_planners_have_the_checksum_of_their_weights(name: str) -> None:
    data = json.loads((checkpoint.SHIPPED / name / CONFIG).read_text())
    weights = (checkpoint.SHIPPED / name / WEIGHTS).read_bytes()
    assert data[checkpoint.CHECKSUM] == checkpoint.checksum(weights)


# --- saving -----------------------------------------------------------------------


@pytest.mark.parametrize("full_at", [WEIGHTS, CONFIG, CARD])
def test_a_full_disk_leaves_the_old_planner_intact(
    saved: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    before = contents(saved)
    other = toy_policy(toy_config(window=WindowConfig(horizon=24)), seed=1)
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if full_at in path.name:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="Free some space"):
            other.save_pretrained(saved)
    assert contents(saved) == before
    other.save_pretrained(saved)
    assert all(contents(saved)[name] != content for name, content in before.items())


def test_an_interrupt_while_saving_leaves_the_old_planner_intact(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy_policy(seed=1).save_pretrained(saved)
    assert contents(saved) == before


def happens_at(
    moment: int, event: Callable[[], object], *, before: bool
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what wraps functions: at their call of that number, an event happens."""
    calls = 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            now = calls == moment
            if now and before:
                event()
            result = function(*arguments)
            if now and not before:
                event()
            return result

        return call

    return wrapped


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
@pytest.mark.parametrize("moment", range(1, 7))
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_while_saving_leaves_the_old_planner_or_the_new_one(
    saved: Path, moment: int, before: bool
) -> None:
    """Killed before or after each sync and rename; the next save leaves no trace."""
    other = toy_policy(toy_config(window=WindowConfig(horizon=24)), seed=1)
    child = os.fork()
    if child == 0:
        killed = happens_at(
            moment, lambda: os.kill(os.getpid(), signal.SIGKILL), before=before
        )
        Path.replace = killed(Path.replace)  # type: ignore[method-assign]
        os.fsync = killed(os.fsync)
        other.save_pretrained(saved)
        os._exit(0)
    os.waitpid(child, 0)
    assert is_one_of(saved, toy_policy(), other)
    files._tidy_once.cache_clear()  # as in a new process
    other.save_pretrained(saved)
    assert set(contents(saved)) == {WEIGHTS, CONFIG, CARD}
    assert read_planner(saved)[0].window.horizon == 24


@pytest.mark.parametrize("moment", range(1, 7))
@pytest.mark.parametrize("before", [True, False])
def test_ctrl_c_while_saving_leaves_the_old_planner_or_the_new_one(
    saved: Path, monkeypatch: pytest.MonkeyPatch, moment: int, before: bool
) -> None:
    """Pressed before or after each sync and rename."""
    other = toy_policy(toy_config(window=WindowConfig(horizon=24)), seed=1)

    def pressed() -> None:
        raise KeyboardInterrupt

    interrupted = happens_at(moment, pressed, before=before)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted(Path.replace))
        patch.setattr(os, "fsync", interrupted(os.fsync))
        with pytest.raises(KeyboardInterrupt):
            other.save_pretrained(saved)
    assert is_one_of(saved, toy_policy(), other)


def is_one_of(folder: Path, *policies: DiffuserPolicy) -> bool:
    """Return whether a folder holds the settings and the weights of one of these."""
    config, networks = read_planner(folder)
    return (config.window.horizon, weight_checksum(networks)) in [
        (policy.config.window.horizon, weight_checksum(policy.networks))
        for policy in policies
    ]


def test_a_folder_in_the_place_of_the_weights_is_refused_before_anything_changes(
    saved: Path,
) -> None:
    (saved / WEIGHTS).unlink()
    before = contents(saved)
    (saved / WEIGHTS).mkdir()
    with pytest.raises(StorageError, match=r"model\.safetensors is a folder"):
        toy_policy(seed=1).save_pretrained(saved)
    (saved / WEIGHTS).rmdir()
    assert contents(saved) == before


def test_weights_that_wait_are_moved_into_place(saved: Path) -> None:
    """As a training does when it resumes: the writer was killed just before."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    place = hidden_sibling(saved / WEIGHTS, checkpoint.PENDING)
    pending = Path(str(place).replace(f".{os.getpid()}-", f".{child.pid}-"))
    shutil.copy(saved / WEIGHTS, pending)
    (saved / WEIGHTS).write_bytes(b"of another planner")
    read_planner(saved)
    checkpoint.settle(saved)
    assert set(contents(saved)) == {WEIGHTS, CONFIG, CARD}
    read_planner(saved)


def test_nan_in_the_provenance_is_refused_and_nothing_changes(saved: Path) -> None:
    before, policy = contents(saved), toy_policy()
    config, networks = policy.config, policy.networks
    with pytest.raises(StorageError, match=r"config\.json was not written.*NaN"):
        checkpoint.write_planner(saved, config, networks, provenance={"x": math.nan})
    assert contents(saved) == before


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        toy_policy().save_pretrained(tmp_path / "file" / "planner")


def test_files_behind_links_are_replaced_there(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (saved / WEIGHTS).rename(tmp_path / "big" / WEIGHTS)
    (saved / WEIGHTS).symlink_to(tmp_path / "big" / WEIGHTS)
    toy_policy(seed=1).save_pretrained(saved)
    assert (saved / WEIGHTS).is_symlink()
    assert [path.name for path in (tmp_path / "big").iterdir()] == [WEIGHTS]
    read_planner(saved)


# --- finding ----------------------------------------------------------------------


def test_paths_come_before_names(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    shutil.copytree(saved, shipped / "multi2d-toy")
    monkeypatch.setattr(checkpoint, "SHIPPED", shipped)
    assert locate("multi2d-toy") == shipped / "multi2d-toy"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multi2d-toy").mkdir()
    assert locate("multi2d-toy") == Path("multi2d-toy")


def test_an_unknown_name_offers_the_nearest(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "shipped" / "multi2d-toy")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(CheckpointNotFoundError, match="Did you mean 'multi2d-toy'"):
        locate("multi2d-toys")
    shutil.copytree(saved, tmp_path / "runs" / "real")
    monkeypatch.chdir(tmp_path)
    for name in ("real", "rums/real", "runs/ral"):
        with pytest.raises(CheckpointNotFoundError, match="Did you mean 'runs/real'"):
            locate(name)
    with pytest.raises(CheckpointNotFoundError, match=r"mean '.*/runs/real'"):
        locate(str(tmp_path / "runs" / "reel"))


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "../planner", ""])
def test_what_is_no_hub_id_is_not_looked_up(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((CheckpointNotFoundError, CheckpointError)):
        read_planner(name)


def test_offline_a_hub_id_fails_at_once() -> None:
    """The suite runs with HF_HUB_OFFLINE; sockets would raise too."""
    begin = time.monotonic()
    with pytest.raises(CheckpointNotFoundError, match="cannot be reached"):
        DiffuserPolicy.from_pretrained("someone/their-planner")
    assert time.monotonic() - begin < 20


def test_a_hub_snapshot_is_used(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []

    def snapshot(name: str, **settings: Any) -> str:
        asked.append((name, settings))
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    read_planner("someone/their-planner")
    [(name, settings)] = asked  # the cache was enough
    assert name == "someone/their-planner"
    assert settings["local_files_only"] is True
    assert WEIGHTS in settings["allow_patterns"]


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG])
def test_a_download_that_was_interrupted_is_finished(
    saved: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    content = (saved / missing).read_bytes()
    (saved / missing).unlink()

    def snapshot_download(_: str, *, local_files_only: bool = False, **__: Any) -> str:
        if not local_files_only:
            (saved / missing).write_bytes(content)
        return str(saved)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download, HfApi=Mock())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    read_planner("someone/their-planner")


SILENT_NETWORK = """
    import os, socket, threading, time

    server = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
    from diffuser_policy import checkpoint
    from diffuser_policy.errors import CheckpointNotFoundError

    checkpoint.HUB_TIMEOUT = 0.5
    begin = time.monotonic()
    try:
        checkpoint.read_planner("someone/their-planner")
    except CheckpointNotFoundError as error:
        assert "cannot be reached" in str(error), error
        assert time.monotonic() - begin < 10
        print("refused")
"""


@pytest.mark.proof
def test_a_network_that_swallows_packets_does_not_hang(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SILENT_NETWORK)],
        env={**os.environ, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert process.stdout == "refused\n", process.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("someone/planner", ("someone/planner", None)),
        ("someone/planner@v2", ("someone/planner", "v2")),
        ("someone/planner@refs/pr/3", ("someone/planner", "refs/pr/3")),
    ],
)
def test_a_revision_of_a_hub_repository_can_be_named(
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    expected: tuple[str, str | None],
    saved: Path,
) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(saved)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert locate(source) == saved
    assert asked == [expected]


def test_without_the_hub_extra_the_advice_is_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointNotFoundError, match=r"pip install .\.\[hub\]"):
        locate("someone/their-planner")
