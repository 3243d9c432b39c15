r"""Ways to run a network when only its output is wanted.

All give the numbers of the network itself, up to rounding:

| name | runs |
|---|---|
| off | the network as it is written |
| fused | on a CPU, the form of the temporal U-Net below |
| compile | what `torch.compile` makes of the network, after half a minute or more |
| cuda-graphs | the network's kernels, recorded once per shape and replayed |
| auto | cuda-graphs on a GPU, fused elsewhere |

An acceleration that this machine lacks says why in an `AccelerationWarning`, and
"fused" runs instead: planning never stops for the lack of a compiler. Weights may
change between calls, in place or by assignment. What is written through a parameter's
`.data` goes unnoticed, as do replaced submodules and hooks: run networks that change in
these ways with "off".

The fused form: `TemporalUNet` is written as the paper draws it, for training and for
every device. For one denoising step i at a time, the same sums take about half the
time.
What changes, all of it exact up to rounding:

| part | as the paper draws it | here |
|---|---|---|
| layout | `[batch, channels, horizon]` | `[batch, horizon, channels]` |
| small convolution | of the library | product of gathered taps and weights |
| transposed convolution | of the library | convolution to twice the channels |
| time embedding | computed for every row | constant of i, computed once |
| Mish | $x \tanh(\ln(1+e^x))$ | $x - x / (1 + e + e^2/2)$, $e = e^x$ |

The library reorders a convolution's weights in every call, which small batches do not
pay back. A transposed convolution of stride 2 and width 4 has even and odd outputs

$$y_{2t} = w_1 x_t + w_3 x_{t-1},\qquad y_{2t+1} = w_2 x_t + w_0 x_{t+1},$$

which side by side, as channels of a plain convolution, already lie in memory in the
order of the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_policy.choices import Acceleration
from diffuser_policy.errors import UnknownNameError
from diffuser_policy.networks.unet import (
    GROUPS,
    ConvBlock,
    LinearAttention,
    MidStage,
    ResidualBlock,
    Stage,
    TemporalUNet,
)

# Gathered taps that fit into a core's second-level cache: 1 MiB of float32. Beyond
# it, gathering costs more than the library's reordering of the weights.
MAX_GATHERED = 2**18


def mish(x: Tensor) -> Tensor:
    """Return Mish with one exponential; its overflow gives the limit, x itself."""
    exponential = x.exp()
    ratio = torch.addcmul(exponential, exponential, exponential, value=0.5).add_(1)
    return torch.addcdiv(x, x, ratio, value=-1)


class Convolution:
    """A convolution of `[batch, horizon, channels]`."""

    def __init__(
        self, weight: Tensor, bias: Tensor, *, padding: int, stride: int = 1
    ) -> None:
        """Lay the weights out.

        Args:
            weight: `[out_channels, in_channels, width]`.
            bias: `[out_channels]`.
            padding: Zeros at both ends, in planning steps.
            stride: Planning steps between two outputs.
        """
        self.padding, self.stride = padding, stride
        self.out_channels, _, self.width = weight.shape
        self.weight, self.bias = weight.unsqueeze(2), bias
        self.taps = weight.permute(2, 1, 0).reshape(-1, self.out_channels)

    @classmethod
    def of(cls, module: nn.Module) -> Convolution:
        """Return the form of a `Conv1d`."""
        conv = cast("nn.Conv1d", module)
        weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
        padding, stride = int(conv.padding[0]), conv.stride[0]
        return cls(weight, bias, padding=padding, stride=stride)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[batch, horizon, in_channels]` to `[batch, horizon', out_channels]`."""
        batch, horizon, channels = x.shape
        rows = batch * (horizon // self.stride)
        if rows * self.width * channels <= MAX_GATHERED:
            return self._gathered(x)
        image = x.unsqueeze(1).permute(0, 3, 1, 2)  # channels-last in memory
        stride, padding = (1, self.stride), (0, self.padding)
        out = F.conv2d(image, self.weight, self.bias, stride=stride, padding=padding)
        return out.permute(0, 2, 3, 1).squeeze(1)

    def _gathered(self, x: Tensor) -> Tensor:
        """Multiply the matrix of all windows with the taps."""
        if self.padding:
            x = torch.constant_pad_nd(x, (0, 0, self.padding, self.padding))
        windows = x.unfold(1, self.width, self.stride).transpose(2, 3)
        batch, steps = windows.shape[:2]
        out = torch.addmm(self.bias, windows.reshape(batch * steps, -1), self.taps)
        return out.view(batch, steps, self.out_channels)


class Upsampling:
    """A transposed convolution of stride 2 and width 4, as a plain one of width 3."""

    def __init__(self, module: nn.Module) -> None:
        """Lay the weights out: even outputs first, then odd ones."""
        conv = cast("nn.ConvTranspose1d", module)
        first, second, third, fourth = conv.weight.detach().unbind(dim=2)
        nothing = torch.zeros_like(first)
        even = torch.stack([fourth, second, nothing], dim=2)
        odd = torch.stack([nothing, third, first], dim=2)
        weight = torch.cat([even, odd], dim=1).transpose(0, 1).contiguous()
        bias = cast("Tensor", conv.bias).detach().repeat(2)
        self.convolution = Convolution(weight, bias, padding=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[batch, horizon, channels]` to twice the horizon."""
        batch, horizon, channels = x.shape
        return self.convolution(x).reshape(batch, 2 * horizon, channels)


class Block:
    """`ConvBlock`: convolution, group norm, Mish."""

    def __init__(self, block: ConvBlock) -> None:
        """Take the weights over."""
        norm = block.norm
        self.convolution = Convolution.of(block.conv)
        self.gain, self.bias = norm.weight.detach(), norm.bias.detach()
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[batch, horizon, in_channels]` to `[batch, horizon, out_channels]`."""
        image = self.convolution(x).unsqueeze(1).permute(0, 3, 1, 2)
        normed = torch.group_norm(image, GROUPS, self.gain, self.bias, self.eps)
        return mish(normed.permute(0, 2, 3, 1).squeeze(1))


class Residual:
    """`ResidualBlock`, whose time term is a constant of the denoising step."""

    def __init__(self, block: ResidualBlock) -> None:
        """Take the weights over."""
        self.conv_in, self.conv_out = Block(block.conv_in), Block(block.conv_out)
        same = isinstance(block.skip, nn.Identity)
        self.skip = None if same else Convolution.of(block.skip)
        self.time = block.time

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Map `[batch, horizon, in_channels]`, given this block's time term."""
        hidden = self.conv_out(self.conv_in(x).add_(time))
        return hidden.add_(x if self.skip is None else self.skip(x))


class FusedStage:
    """Two residual blocks, attention, and resampling at one resolution."""

    def __init__(self, stage: Stage | MidStage) -> None:
        """Take the weights over."""
        self.first, self.second = Residual(stage.first), Residual(stage.second)
        attention = stage.attention
        self.attention = attention if isinstance(attention, LinearAttention) else None
        self.attention_between = isinstance(stage, MidStage)
        self.resample = _resampling(getattr(stage, "resample", nn.Identity()))

    def __call__(self, x: Tensor, times: list[Tensor]) -> Tensor:
        """Run the stage without its resampling; takes two terms off `times`."""
        x = self.first(x, times.pop())
        if self.attention_between:
            x = self._attend(x)
        x = self.second(x, times.pop())
        return x if self.attention_between else self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        if self.attention is None:
            return x
        out: Tensor = self.attention(x.transpose(1, 2)).transpose(1, 2)
        return out


class FusedUNet:
    """A snapshot of a `TemporalUNet`'s weights that maps a batch at one step i."""

    def __init__(self, network: TemporalUNet) -> None:
        """Lay all weights out.

        Args:
            network: Whose weights to take; later changes are not seen.
        """
        self.time_embedding = network.time_embedding
        self.downs = [FusedStage(cast("Stage", stage)) for stage in network.downs]
        self.mid = FusedStage(network.mid)
        self.ups = [FusedStage(cast("Stage", stage)) for stage in network.ups]
        self.head = Block(cast("ConvBlock", network.head[0]))
        self.out = Convolution.of(network.head[1])
        self._times: dict[int, list[Tensor]] = {}

    def __call__(self, trajectories: Tensor, i: int) -> Tensor:
        """Map noisy trajectories `[batch, horizon, transition]` at step i."""
        times = self._time_terms(i).copy()
        x, skips = trajectories, []
        for stage in self.downs:
            x = stage(x, times)
            skips.append(x)
            x = stage.resample(x) if stage.resample else x
        x = self.mid(x, times)
        for stage in self.ups:
            x = stage(torch.cat([x, skips.pop()], dim=2), times)
            x = stage.resample(x) if stage.resample else x
        return self.out(self.head(x))

    def _time_terms(self, i: int) -> list[Tensor]:
        """Return each block's time term `[channels]`, the first block's last."""
        if i not in self._times:
            stages = [*self.downs, self.mid, *self.ups]
            blocks = [
                block for stage in stages for block in (stage.first, stage.second)
            ]
            with torch.inference_mode(mode=False), torch.no_grad():
                time = self.time_embedding(torch.tensor([i]))
                self._times[i] = [block.time(time)[0] for block in reversed(blocks)]
        return self._times[i]


def _resampling(module: nn.Module) -> Convolution | Upsampling | None:
    """Return the form of a stage's resampling."""
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.Conv1d):
        return Convolution.of(module)
    return Upsampling(module)


WARM_UPS = 3  # calls before a recording, in which libraries choose their kernels
MAX_RECORDINGS = 64  # each keeps its inputs, outputs and scratch memory


class AccelerationWarning(UserWarning):
    """An acceleration is not available: why, and what runs instead."""


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
    """Tries something faster; after the first failure it warns and runs "fused"."""

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
                    f"acceleration={self.name!r} is not available: {lines[0]} "
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
