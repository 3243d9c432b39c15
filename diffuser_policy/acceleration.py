"""Acceleration: ways to run a network when only its output is wanted.

All give the numbers of the network itself, up to rounding:

| name | runs |
|---|---|
| off | the network as it is written |
| fused | on a CPU, `diffuser_policy.inference`'s form of the temporal U-Net |
| compile | what `torch.compile` makes of the network, after half a minute or more |
| cuda-graphs | the network's kernels, recorded once per shape and replayed |
| auto | cuda-graphs on a GPU, fused elsewhere |

What cannot be had says why in an `AccelerationWarning`, and "fused" runs instead:
planning never stops for the lack of a compiler. Weights may change between calls, in
place or by assignment. What is written through a parameter's `.data` goes unnoticed,
as do replaced submodules and hooks: run networks that change so with "off".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffuser_policy.errors import UnknownNameError
from diffuser_policy.inference import FusedUNet
from diffuser_policy.networks import TemporalUNet

Acceleration = Literal["auto", "off", "fused", "compile", "cuda-graphs"]
ACCELERATIONS: tuple[Acceleration, ...] = get_args(Acceleration)
WARM_UPS = 3  # calls before a recording, in which libraries choose their kernels
MAX_RECORDINGS = 64  # each keeps its inputs, outputs and scratch memory


class AccelerationWarning(UserWarning):
    """An acceleration that cannot be had, why, and what runs instead."""


class Runner:
    """Runs a network for its output alone; this one runs it as it is written."""

    def __init__(self, network: nn.Module) -> None:
        """Hold the network.

        Args:
            network: Maps `[batch, horizon, transition]` and `[batch]` steps to an
                output of the first shape.
        """
        self.network = network

    def __call__(self, noisy: Tensor, i: int) -> Tensor:
        """Return the network's output; call it where gradients are off.

        Args:
            noisy: `[batch, horizon, transition]`.
            i: Denoising step, the same for the whole batch.
        """
        output: Tensor = self.network(noisy, _steps(noisy, i))
        return output


class FusedRunner(Runner):
    """Runs `FusedUNet` on a CPU, and takes the weights anew when they have changed."""

    def __init__(self, network: nn.Module) -> None:
        """Find where the weights are kept."""
        super().__init__(network)
        self._slots = [
            (module._parameters, name)
            for module in network.modules()
            for name in module._parameters
        ]
        self._fused: FusedUNet | None = None
        self._seen: list[tuple[int, int]] = []
        self._held: list[Tensor] = []

    def __call__(self, noisy: Tensor, i: int) -> Tensor:
        """Return the network's output; see `Runner`."""
        if not isinstance(self.network, TemporalUNet) or noisy.device.type != "cpu":
            return super().__call__(noisy, i)
        slots = (parameters[name] for parameters, name in self._slots)
        weights = [weight for weight in slots if weight is not None]
        try:
            seen = [(weight.data_ptr(), weight._version) for weight in weights]
        except RuntimeError:  # made in inference mode: changes are not counted
            return super().__call__(noisy, i)
        if self._fused is None or seen != self._seen:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._fused, self._seen = FusedUNet(self.network), seen
                # While these are held, their addresses are not given to others.
                self._held = [weight.detach() for weight in weights]
        return self._fused(noisy, i)


class FallibleRunner(Runner):
    """Tries something faster; on the first failure warns, and runs "fused" for good."""

    name: Acceleration

    def __init__(self, network: nn.Module) -> None:
        """Prepare what runs after a failure."""
        super().__init__(network)
        self._instead = FusedRunner(network)
        self._failed = False

    def __call__(self, noisy: Tensor, i: int) -> Tensor:
        """Return the network's output; see `Runner`."""
        if not self._failed:
            try:
                return self._attempt(noisy, i)
            except Exception as error:  # compilers raise whatever they like
                self._failed = True
                lines = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(
                    f"acceleration={self.name!r} cannot be had: {lines[0]} "
                    f"Running 'fused' instead.",
                    AccelerationWarning,
                    stacklevel=2,
                )
        return self._instead(noisy, i)

    def _attempt(self, noisy: Tensor, i: int) -> Tensor:
        """Return the output the fast way, or raise anything."""
        raise NotImplementedError


class CompiledRunner(FallibleRunner):
    """Runs what `torch.compile` makes of the network, for any horizon."""

    name = "compile"

    def __init__(self, network: nn.Module, *, backend: str = "inductor") -> None:
        """Leave the compilation to the first call.

        Args:
            network: See `Runner`.
            backend: Of `torch.compile`.
        """
        super().__init__(network)
        self._backend = backend
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None

    def _attempt(self, noisy: Tensor, i: int) -> Tensor:
        if self._compiled is None:
            self._compiled = torch.compile(
                self.network, dynamic=True, backend=self._backend
            )
        return self._compiled(noisy, _steps(noisy, i))


@dataclass(frozen=True)
class Recording:
    """Kernels recorded for one shape, and the memory that they read and write."""

    graph: torch.cuda.CUDAGraph
    noisy: Tensor
    steps: Tensor
    output: Tensor


class GraphRunner(FallibleRunner):
    """Replays the network's kernels, recorded once per shape, without Python."""

    name = "cuda-graphs"

    def __init__(self, network: nn.Module) -> None:
        """Start without recordings."""
        super().__init__(network)
        self._recordings: dict[tuple[torch.Size, torch.dtype], Recording] = {}
        self._addresses: list[int] = []

    def _attempt(self, noisy: Tensor, i: int) -> Tensor:
        if noisy.device.type != "cuda":
            raise RuntimeError(f"they need a GPU, and the plans are on {noisy.device}.")
        addresses = [weight.data_ptr() for weight in self.network.parameters()]
        if addresses != self._addresses:  # recordings read the old memory
            self._recordings.clear()
            self._addresses = addresses
        key = (noisy.shape, noisy.dtype)
        if key not in self._recordings:
            if len(self._recordings) >= MAX_RECORDINGS:
                return self._instead(noisy, i)
            self._recordings[key] = self._record(noisy)
        recording = self._recordings[key]
        recording.noisy.copy_(noisy)
        recording.steps.fill_(i)
        recording.graph.replay()
        return recording.output.clone()

    def _record(self, noisy: Tensor) -> Recording:
        with torch.inference_mode(mode=False), torch.no_grad():
            example, steps = torch.zeros_like(noisy), _steps(noisy, 0)
            stream = torch.cuda.Stream(noisy.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(noisy.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.network(example, steps)
            torch.cuda.current_stream(noisy.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = self.network(example, steps)
        return Recording(graph, example, steps, output)


class AutoRunner(Runner):
    """Runs what is fastest on the device that the trajectories are on."""

    def __init__(self, network: nn.Module) -> None:
        """Prepare both."""
        super().__init__(network)
        self._graphs, self._fused = GraphRunner(network), FusedRunner(network)

    def __call__(self, noisy: Tensor, i: int) -> Tensor:
        """Return the network's output; see `Runner`."""
        runner = self._graphs if noisy.device.type == "cuda" else self._fused
        return runner(noisy, i)


RUNNERS: dict[Acceleration, type[Runner]] = {
    "auto": AutoRunner,
    "off": Runner,
    "fused": FusedRunner,
    "compile": CompiledRunner,
    "cuda-graphs": GraphRunner,
}


def accelerate(network: nn.Module, acceleration: Acceleration) -> Runner:
    """Return what runs the network that way.

    Args:
        network: See `Runner`.
        acceleration: One of the names above.

    Raises:
        UnknownNameError: An acceleration that does not exist.
    """
    if acceleration not in RUNNERS:
        raise UnknownNameError("acceleration", acceleration, RUNNERS)
    return RUNNERS[acceleration](network)


def _steps(noisy: Tensor, i: int) -> Tensor:
    """Return the denoising step of every trajectory `[batch]`."""
    return torch.full((noisy.shape[0],), i, dtype=torch.long, device=noisy.device)
