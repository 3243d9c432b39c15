"""Two processes through Accelerate: one model, trained on the batches of both."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffuser_policy.config import NetworkConfig, OptimizationConfig, TrainConfig
from diffuser_policy.errors import ConfigError, MissingExtraError
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.trainer import Trainer

# Processes that know their ranks, like those of `accelerate launch` and `torchrun`;
# children of one that has imported everything.
WORKERS = """
import os
import socket
import sys
from pathlib import Path

import accelerate
import torch._dynamo
from safetensors.torch import save_file
from diffuser_policy.testing import toy_dataset
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.trainer import Trainer
from tests.test_multiprocess_training import config

def work(output):
    processes = Processes.launched("cpu")
    trainer = Trainer(config(), toy_dataset(), output / "run", processes=processes)
    trainer.run(save_interval=2, progress=False)
    weights = trainer.networks.state_dict()
    save_file(weights, output / f"rank-{processes.rank}.safetensors")

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
}
children = []
for rank in ("0", "1"):
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        try:
            work(Path(sys.argv[1]))
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        os._exit(code)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def config() -> TrainConfig:
    return toy_config(
        network=NetworkConfig(dim=16, multipliers=(1, 2), num_denoising_steps=8),
        optimization=OptimizationConfig(
            num_steps=5, batch_size=4, num_accumulations=2, learning_rate=1e-3
        ),
    )


def alone(output: Path, processes: Processes | None = None) -> dict[str, Tensor]:
    """Return the weights that one process learns."""
    processes = processes or Processes.single("cpu")
    trainer = Trainer(config(), toy_dataset(), output, processes=processes)
    trainer.run(progress=False)
    return trainer.networks.state_dict()


def averaging(ranks: int) -> Processes:
    """Return one process that computes the batches of all ranks by itself."""

    def prepare(loss: nn.Module) -> Callable[..., dict[str, Tensor]]:
        def mean(step: int, _: int, accumulation: int) -> dict[str, Tensor]:
            losses = [loss(step, rank, accumulation) for rank in range(ranks)]
            return {
                name: torch.stack([each[name] for each in losses]).mean()
                for name in losses[0]
            }

        return mean

    return dataclasses.replace(Processes.single("cpu"), prepare=prepare)


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.timeout(280)
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    root = Path(__file__).parent.parent
    process = subprocess.run(
        [sys.executable, "-c", WORKERS, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    first = load_file(tmp_path / "rank-0.safetensors")
    second = load_file(tmp_path / "rank-1.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)

    # The same as one process that does the work of both, up to rounding; and not
    # the same as a process that sees its own batches only.
    both = largest_difference(first, alone(tmp_path / "both", averaging(2)))
    one = largest_difference(first, alone(tmp_path / "one"))
    assert both < 2e-5
    assert one > 100 * both

    provenance = DiffuserPolicy.from_pretrained(tmp_path / "run").config.provenance
    assert provenance["processes"] == 2
    assert provenance["steps"] == 5


def test_without_a_launcher_there_is_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = Processes.launched("cpu")
    assert (processes.rank, processes.num_processes) == (0, 1)
    assert processes.is_main
    assert processes.device == torch.device("cpu")


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"pip install .\.\[train\]"):
        Processes.launched("cpu")


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:0"])
def test_devices_that_are_not_there_are_refused(
    device: str, launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setitem(sys.modules, "accelerate", ModuleType("accelerate"))
    make = Processes.launched if launched else Processes.single
    with pytest.raises(ConfigError, match=f"no device '{device}'.*have: cpu"):
        make(device)


def test_the_launchers_precision_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def accelerator(**settings: Any) -> SimpleNamespace:
        asked.update(settings)
        return SimpleNamespace(
            device=torch.device("cpu"),
            process_index=0,
            num_processes=2,
            prepare=None,
            backward=None,
        )

    accelerate = ModuleType("accelerate")
    monkeypatch.setattr(accelerate, "Accelerator", accelerator, raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", accelerate)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    Processes.launched("cpu")
    assert asked == {"cpu": True, "mixed_precision": "no"}


def test_a_numbered_device_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = "diffuser_policy.training.processes.find_device"
    monkeypatch.setattr(found, torch.device)
    with pytest.raises(ConfigError, match=r"got 'cuda:1' .*CUDA_VISIBLE_DEVICES"):
        Processes.launched("cuda:1")


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    other = dataclasses.replace(Processes.single("cpu"), rank=1)
    alone(tmp_path, other)
    assert list(tmp_path.iterdir()) == []
