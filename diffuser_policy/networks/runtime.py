r"""Ways to run a network when no gradients are needed.

All compute the network's own output, up to rounding:

| name | runs |
|---|---|
| off | the network as it is written |
| fused | on a CPU, the faster form of the temporal U-Net below |
| compile | the network compiled by `torch.compile`, which takes half a minute or more |
| cuda-graphs | the network's kernels, recorded once per shape and replayed |
| auto | cuda-graphs on a GPU, fused elsewhere |

If this machine lacks the acceleration, an `AccelerationWarning` says why, and "fused"
runs instead: a missing compiler never stops planning. Residual networks always run as
they are written, and "fused" runs U-Nets so whose group norms see a single channel, or
fewer than four numbers in these plans.

Weights may change between calls, in place or by assignment. Writing through a
parameter's `.data`, replaced submodules and hooks go unnoticed. So do the steps of a
fused optimizer, such as `torch.optim.Adam(fused=True)`, except after a loss or an
output with gradients of the same `Denoiser`. Run networks that change in other ways
with "off".

`TemporalUNet` is written as the paper draws it, for training and for every device. The
fused form computes the same sums in about half the time, for one denoising step i at a
time. The differences, all exact up to rounding:

| part | as the paper draws it | here |
|---|---|---|
| layout | `[batch, channels, horizon]` | `[batch, horizon, channels]` |
| small convolution | of the library | product of gathered windows and weights |
| transposed convolution | of the library | convolution to twice the channels |
| time embedding | computed for every row | constant of i, computed once |
| Mish | $x \tanh(\ln(1+e^x))$ | $n - 2n / (1 + \sigma(n)^2)$, $n = -x$ |

The library reorders a convolution's weights in every call, which does not pay for small
batches. A transposed convolution of stride 2 and width 4 has even and odd outputs

$$y_{2t} = w_1 x_t + w_3 x_{t-1},\qquad y_{2t+1} = w_2 x_t + w_0 x_{t+1},$$

Side by side, as channels of a plain convolution, they already lie in memory in the
order of the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from threading import Lock
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_policy.choices import Acceleration
from diffuser_policy.errors import UnknownNameError
from diffuser_policy.networks.unet import (
    GROUPS,
    ConvBlock,
    LinearAttention,
    ResidualBlock,
    Stage,
    TemporalUNet,
)

# Numbers in gathered windows that fit into a core's second-level cache: 1 MiB of
# float32. Beyond it, gathering costs more than the library's reordering of the weights.
MAX_GATHERED = 2**18

# Numbers in a group of a channels-last norm, and channels that they come from: of fewer
# that nearly agree, as the steps of a channel often do, the library's variance loses
# most digits. With two channels a group, only the coarsest stage can have so few.
LEAST_IN_GROUP, LEAST_CHANNELS = 4, 2

Norm = tuple[Tensor, Tensor, float]  # negative gain and bias, and epsilon
ONE = torch.ones(1, dtype=torch.float32, device="cpu")


def mish_of_negative(n: Tensor) -> Tensor:
    """Return Mish of -n in three operations: for small tensors, each costs the same."""
    logistic = n.sigmoid()
    divisor = torch.addcmul(ONE, logistic, logistic)
    return torch.addcdiv(n, n, divisor, value=-2)


class Convolution:
    """A convolution of `[batch, horizon, channels]`, its weights laid out once.

    A transposed one (stride 2, width 4) becomes a plain one of width 3 with twice the
    channels: the even output steps, then the odd ones.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take the weights of a `Conv1d` or `ConvTranspose1d`."""
        conv = cast("nn.Conv1d | nn.ConvTranspose1d", module)
        weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
        self.padding, self.stride = int(conv.padding[0]), conv.stride[0]
        self.steps_out = 1  # planning steps in each of the convolution's outputs
        if isinstance(conv, nn.ConvTranspose1d):
            first, second, third, fourth = weight.unbind(dim=2)
            nothing = torch.zeros_like(first)
            even = torch.stack([fourth, second, nothing], dim=2)
            odd = torch.stack([nothing, third, first], dim=2)
            weight = torch.cat([even, odd], dim=1).transpose(0, 1).contiguous()
            bias = bias.repeat(2)
            self.padding, self.stride, self.steps_out = 1, 1, 2
        self.out_channels, _, self.width = weight.shape
        self.weight, self.bias = weight.unsqueeze(2), bias  # of an image of height 1
        self.taps = weight.permute(2, 1, 0).reshape(-1, self.out_channels)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[batch, horizon, in_channels]` to `[batch, horizon', out_channels]`."""
        batch, horizon, channels = x.shape
        rows = batch * (horizon // self.stride)
        if rows * self.width * channels <= MAX_GATHERED:
            # One matrix product: a row for each window, a column for each channel.
            if self.width > 1:
                x = torch.constant_pad_nd(x, (0, 0, self.padding, self.padding))
                x = x.unfold(1, self.width, self.stride).transpose(2, 3)
            steps = x.shape[1]
            out = torch.addmm(self.bias, x.reshape(batch * steps, -1), self.taps)
        else:
            image = x.unsqueeze(1).permute(0, 3, 1, 2)  # channels-last in memory
            stride, padding = (1, self.stride), (0, self.padding)
            out = F.conv2d(
                image, self.weight, self.bias, stride=stride, padding=padding
            )
            out, steps = out.permute(0, 2, 3, 1), out.shape[3]
        return out.reshape(batch, steps * self.steps_out, -1)


class FusedBlock(NamedTuple):
    """Weights of a `ResidualBlock`: two convolutions, their norms, skip and time."""

    convolutions: tuple[Convolution, Convolution]
    norms: tuple[Norm, Norm]
    skip: Convolution | None
    time: nn.Module


class FusedStage(NamedTuple):
    """Weights of a `Stage`, in the order in which they are used."""

    steps: tuple[FusedBlock | LinearAttention, ...]
    resample: Convolution | None


class FusedUNet:
    """A snapshot of a `TemporalUNet`'s weights that maps a batch at one step i."""

    def __init__(self, network: TemporalUNet) -> None:
        """Lay all weights out.

        Args:
            network: The network whose weights to take; later changes are not seen.
        """
        self.time_embedding = network.time_embedding
        self.downs = [fused_stage(cast("Stage", stage)) for stage in network.downs]
        self.mid = fused_stage(network.mid)
        self.ups = [fused_stage(cast("Stage", stage)) for stage in network.ups]
        head = cast("ConvBlock", network.head[0])
        self.head, self.head_norm = Convolution(head.conv), norm_of(head)
        self.out = Convolution(network.head[1])
        self._times: dict[int, list[Tensor]] = {}

    def __call__(self, trajectories: Tensor, i: int) -> Tensor:
        """Map noisy trajectories `[batch, horizon, transition]` at step i."""
        if i not in self._times:  # constants of i, for every row and every call
            self._times[i] = self._time_terms(i)
        times = iter(self._times[i])
        x, skips = trajectories, []
        for stage in self.downs:
            x = run_stage(stage, x, times)
            skips.append(x)
            x = stage.resample(x) if stage.resample else x
        x = run_stage(self.mid, x, times)
        for stage in self.ups:
            x = run_stage(stage, torch.cat([x, skips.pop()], dim=2), times)
            x = stage.resample(x) if stage.resample else x
        return self.out(norm_mish(self.head(x), self.head_norm))

    def _time_terms(self, i: int) -> list[Tensor]:
        """Return each block's time term `[channels]`, in the order of the blocks."""
        stages = [*self.downs, self.mid, *self.ups]
        steps = [step for stage in stages for step in stage.steps]
        blocks = [step for step in steps if isinstance(step, FusedBlock)]
        # A tensor that is made in inference mode could not be used outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            time = self.time_embedding(torch.tensor([i]))
            return [block.time(time)[0] for block in blocks]


def fused_stage(stage: Stage) -> FusedStage:
    """Return the weights of a stage, laid out for `run_stage`."""

    def block(module: ResidualBlock) -> FusedBlock:
        halves = module.conv_in, module.conv_out
        same = isinstance(module.skip, nn.Identity)
        return FusedBlock(
            (Convolution(halves[0].conv), Convolution(halves[1].conv)),
            (norm_of(halves[0]), norm_of(halves[1])),
            None if same else Convolution(module.skip),
            module.time,
        )

    steps: list[FusedBlock | LinearAttention] = [
        block(stage.first),
        block(stage.second),
    ]
    if isinstance(stage.attention, LinearAttention):
        steps.insert(1 if stage.attention_between else 2, stage.attention)
    same = isinstance(stage.resample, nn.Identity)
    return FusedStage(tuple(steps), None if same else Convolution(stage.resample))


def run_stage(stage: FusedStage, x: Tensor, times: Iterator[Tensor]) -> Tensor:
    """Map `[batch, horizon, channels]` without resampling; each block takes a time."""
    for step in stage.steps:
        if isinstance(step, LinearAttention):
            x = step(x.transpose(1, 2)).transpose(1, 2)
            continue
        # In-place sums are safe: `norm_mish` returns a new tensor.
        (conv_in, conv_out), (norm_in, norm_out) = step.convolutions, step.norms
        hidden = norm_mish(conv_in(x), norm_in).add_(next(times))
        hidden = norm_mish(conv_out(hidden), norm_out)
        x = hidden.add_(x if step.skip is None else step.skip(x))
    return x


def norm_of(block: ConvBlock) -> Norm:
    """Return the weights of a block's group norm, for the negative of its output."""
    return -block.norm.weight.detach(), -block.norm.bias.detach(), block.norm.eps


def norm_mish(x: Tensor, norm: Norm) -> Tensor:
    """Return group norm and Mish of `[batch, horizon, channels]`."""
    image = x.unsqueeze(1).permute(0, 3, 1, 2)  # channels-last, not copied
    negative = torch.group_norm(image, GROUPS, *norm)
    return mish_of_negative(negative.permute(0, 2, 3, 1).squeeze(1))


WARM_UPS = 3  # calls before a recording, in which libraries choose their kernels
MAX_RECORDINGS = 64  # each keeps its inputs, outputs and scratch memory


class AccelerationWarning(UserWarning):
    """Names an acceleration that is not available, why, and what runs instead."""


class Runner:
    """Runs a network without gradients; this one runs it as it is written."""

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
        output: Tensor = self.network(noisy, steps_of(noisy, i))
        return output


# Hundreds of weights are looked at in every call, so without a line of Python for each.
_ADDRESS, _VERSION = Tensor.data_ptr, attrgetter("_version")


class FusedRunner(Runner):
    """Runs `FusedUNet` on a CPU, and reloads the weights when they have changed."""

    def __init__(self, network: nn.Module) -> None:
        """Find where the weights are kept."""
        super().__init__(network)
        self._slots = [
            (module._parameters, name)
            for module in network.modules()
            for name in module._parameters
        ]
        self._fused: FusedUNet | None = None
        self._seen: tuple[list[int], list[int]] = [], []
        self._held: list[Tensor] = []

    def __call__(self, noisy: Tensor, i: int) -> Tensor:
        """Return the network's output; see `Runner`."""
        # A subclass may compute something else: the fused form is of this method only.
        method = getattr(self.network.forward, "__func__", None)
        if method is not TemporalUNet.forward or noisy.device.type != "cpu":
            return super().__call__(noisy, i)
        network = cast("TemporalUNet", self.network)
        in_group = network.coarsest_width // GROUPS * noisy.shape[1]
        if (
            network.narrowest_width < LEAST_CHANNELS * GROUPS
            or in_group < LEAST_IN_GROUP * network.horizon_multiple
        ):
            return super().__call__(noisy, i)
        weights = [
            weight
            for parameters, name in self._slots
            if (weight := parameters[name]) is not None
        ]
        try:  # a weight has changed if it moved or its version counts a change
            seen = [*map(_ADDRESS, weights)], [*map(_VERSION, weights)]
        except RuntimeError:  # made in inference mode: changes are not counted
            return super().__call__(noisy, i)
        if self._fused is None or seen != self._seen:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._fused, self._seen = FusedUNet(network), seen
                # As long as these are held, no other tensor gets their addresses.
                self._held = [weight.detach() for weight in weights]
        return self._fused(noisy, i)


class FallibleRunner(Runner):
    """Tries something faster; after the first failure it warns and runs "fused"."""

    name: Acceleration

    def __init__(self, network: nn.Module) -> None:
        """Prepare the runner for the time after a failure."""
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
        """Return the output the fast way, or raise any exception."""
        raise NotImplementedError


class CompiledRunner(FallibleRunner):
    """Runs the network compiled by `torch.compile`, for any horizon."""

    name = "compile"

    def __init__(self, network: nn.Module) -> None:
        """Leave the compilation to the first call."""
        super().__init__(network)
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None

    def _attempt(self, noisy: Tensor, i: int) -> Tensor:
        if self._compiled is None:
            self._compiled = torch.compile(self.network, dynamic=True)
        return self._compiled(noisy, steps_of(noisy, i))


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
        self._lock = Lock()  # threads share the memory of the recordings

    def _attempt(self, noisy: Tensor, i: int) -> Tensor:
        if noisy.device.type != "cuda":
            raise RuntimeError(f"they need a GPU, and the plans are on {noisy.device}.")
        with self._lock:
            return self._replayed(noisy, i)

    def _replayed(self, noisy: Tensor, i: int) -> Tensor:
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
        # A recording holds the kernels of one stream. Those of the network run on its
        # own device, which need not be the current one.
        on_device = torch.cuda.device(noisy.device)
        with on_device, torch.inference_mode(mode=False), torch.no_grad():
            example, steps = torch.zeros_like(noisy), steps_of(noisy, 0)
            stream = torch.cuda.Stream(noisy.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(noisy.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.network(example, steps)
            torch.cuda.current_stream(noisy.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                output = self.network(example, steps)
        return Recording(graph, example, steps, output)


class AutoRunner(GraphRunner):
    """Runs the fastest form for the device that the trajectories are on."""

    def __call__(self, noisy: Tensor, i: int) -> Tensor:
        """Return the network's output; see `Runner`."""
        if noisy.device.type == "cuda":
            return super().__call__(noisy, i)
        return self._instead(noisy, i)


RUNNERS: dict[Acceleration, type[Runner]] = {
    "auto": AutoRunner,
    "off": Runner,
    "fused": FusedRunner,
    "compile": CompiledRunner,
    "cuda-graphs": GraphRunner,
}


def accelerate(network: nn.Module, acceleration: Acceleration) -> Runner:
    """Return the runner of that name.

    Args:
        network: See `Runner`.
        acceleration: One of the names above.

    Raises:
        UnknownNameError: An acceleration that does not exist.
    """
    if acceleration not in RUNNERS:
        raise UnknownNameError("acceleration", acceleration, RUNNERS)
    return RUNNERS[acceleration](network)


def steps_of(noisy: Tensor, i: int) -> Tensor:
    """Return the denoising step of every trajectory `[batch]`."""
    return torch.full((noisy.shape[0],), i, dtype=torch.long, device=noisy.device)
