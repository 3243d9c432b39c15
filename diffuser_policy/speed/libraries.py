"""The same plans by other libraries: what their loops and runtimes take.

| name | runs |
|---|---|
| this package | the planner's own reverse process |
| diffusers | the network as it is written, stepped by Hugging Face's schedulers |
| ONNX Runtime, OpenVINO | the exported denoiser, in this package's reverse process |

From the same noise all of them make the same plans, up to rounding. Those that are not
installed are left out.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Prediction,
    Sampler,
)
from diffuser_policy.export import write_denoiser

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of noisy trajectories and a step


def by_library(
    sampler: Sampler, columns: int, length: int
) -> Iterator[tuple[str, Sampler]]:
    """Yield the sampler and its equals by every library that is installed.

    Args:
        sampler: A planner's.
        columns: Of a trajectory.
        length: Planning steps of an example, that its network takes.
    """
    yield "this package", sampler
    if type(sampler) in SCHEDULERS and find_spec("diffusers") is not None:
        yield "diffusers", DiffusersSampler(sampler)
    found = {name: run for name, run in RUNTIMES.items() if find_spec(run[0])}
    if not found or find_spec("onnx") is None:
        return
    denoiser = sampler.denoiser
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "denoiser.onnx"
        write_denoiser(path, denoiser, (2, length, columns))
        for name, (_, load) in found.items():
            other = copy.copy(sampler)
            other.denoiser = RuntimeDenoiser(denoiser, load(path))
            yield name, other


class DiffusersSampler(Sampler):
    """Takes the steps of Hugging Face diffusers' scheduler of the same name."""

    def __init__(self, sampler: Sampler) -> None:
        """Set the scheduler up like a sampler."""
        super().__init__(
            sampler.denoiser.accelerated("off"),
            sampler.num_steps,
            temperature=sampler.temperature,
            spacing=sampler.spacing,
        )
        self.sampler = sampler
        name, settings = SCHEDULERS[type(sampler)]
        self.scheduler: Any = getattr(import_module("diffusers"), name)(
            num_train_timesteps=self.denoiser.schedule.num_denoising_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            **settings,
        )

    def step(
        self,
        noisy: Tensor,
        clean: Tensor,
        i: int,
        j: int,
        before: Prediction | None,
    ) -> tuple[Tensor, float]:
        """Return the scheduler's mean, and the noise that this package adds to it."""
        if before is None:
            with warnings.catch_warnings():  # tensors passed to NumPy, inside diffusers
                warnings.simplefilter("ignore", DeprecationWarning)
                self.scheduler.set_timesteps(timesteps=self.grid[:-1])
        given: dict[str, Any] = {}
        if self.scheduler.config.get("variance_type") == "learned":
            # Its own noise, of a variance that a network gives beside the prediction:
            # none, and without a draw of the global generator.
            given["generator"] = torch.Generator(clean.device)
            clean = torch.cat([clean, torch.zeros_like(clean)], dim=1)
        mean: Tensor = self.scheduler.step(clean, i, noisy, **given).prev_sample
        return mean, self.sampler.weights(i, j, None).noise


SCHEDULERS: dict[type[Sampler], tuple[str, dict[str, Any]]] = {
    DDPMSampler: (
        "DDPMScheduler",
        {"variance_type": "learned", "clip_sample": False},
    ),
    # Of first order, DPM-Solver++ is DDIM, and unlike theirs it takes any grid.
    DDIMSampler: ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    DPMSolverSampler: ("DPMSolverMultistepScheduler", {"solver_order": 2}),
}


class RuntimeDenoiser(Denoiser):
    """Asks another runtime for clean trajectories."""

    def __init__(self, denoiser: Denoiser, run: Run) -> None:
        """Keep the schedule, and how to run."""
        super().__init__(denoiser.network, denoiser.schedule)
        self.run = run

    def forward(self, noisy: Tensor, i: int) -> Tensor:
        """Return the clean trajectories predicted from noisy ones."""
        clean = self.run(noisy.cpu().numpy(), np.array(i))
        return torch.from_numpy(clean).to(noisy.device)


def _onnx_runtime(path: Path) -> Run:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options)

    def run(noisy: np.ndarray, step: np.ndarray) -> np.ndarray:
        clean: np.ndarray = session.run(None, {"noisy": noisy, "step": step})[0]
        return clean

    return run


def _openvino(path: Path) -> Run:
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = import_module("openvino").Core()
    # By default it computes in bfloat16 where the processor can.
    precise = {**threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(str(path), "CPU", precise)

    def run(noisy: np.ndarray, step: np.ndarray) -> np.ndarray:
        clean: np.ndarray = compiled({"noisy": noisy, "step": step})[0]
        return clean

    return run


RUNTIMES: dict[str, tuple[str, Callable[[Path], Run]]] = {
    "ONNX Runtime": ("onnxruntime", _onnx_runtime),
    "OpenVINO": ("openvino", _openvino),
}
