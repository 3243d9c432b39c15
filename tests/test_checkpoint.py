"""Planners on disk: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffuser_policy import checkpoint
from diffuser_policy.checkpoint import CARD, CONFIG, WEIGHTS, locate, read_planner
from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    StorageError,
)
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_policy
from tests.policy_helpers import observe


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


class _Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.witness),))


def test_pickled_weights_are_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (saved / WEIGHTS).write_bytes(pickle.dumps(_Malicious(witness)))
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
        (lambda data: data.pop("schema"), "no 'schema'"),
        (lambda data: data.pop("network"), "lacks settings.*network"),
        (lambda data: data["network"].update(breadth=3), "not know.*breadth"),
        (lambda data: data["network"].update(dim="x"), "must be a whole number"),
        (lambda data: data["planner"].update(sampler="heun"), "heun"),
        (lambda data: data.update(layout=None), "lacks settings"),
        (lambda data: data["window"].update(stride=0), "stride must be positive"),
    ],
)
def test_foreign_settings_are_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_config(saved, change)
    with pytest.raises(CheckpointError, match=message):
        read_planner(saved)


def test_a_folder_without_a_planner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*cannot be read"):
        read_planner(tmp_path)


def test_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "state_100.pt"
    path.touch()
    with pytest.raises(CheckpointError, match="interop"):
        read_planner(path)


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


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        toy_policy().save_pretrained(tmp_path / "file" / "planner")


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


def test_without_the_hub_extra_the_advice_is_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointNotFoundError, match=r"diffuser-policy\[hub\]"):
        locate("someone/their-planner")
