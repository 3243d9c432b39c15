"""Arithmetic that neither depends on the user's global settings nor changes them.

A program may have set another default dtype or device, `torch.autocast`, gradients off,
or `np.seterr(all="raise")`. Planning and training give the same numbers all the same:

- `plain_arithmetic` switches these off, where it can, for one call in this thread.
- The default dtype is global to the process, so it is left alone: tensors are made with
  an explicit dtype. Only building networks sets it for a moment (`build.seeded`).
- Global random generators are left as they were: every call draws from its own.

NumPy's errors are switched off because results are checked instead: a plan, an action
and a loss are finite, or an error says why not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.errors import ConfigError, MemoryLimitError

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
ALLOCATION = ("allocate memory", "not enough memory", "out of memory")
WILD = 1e10  # weights of trained networks are far below


@contextlib.contextmanager
def plain_arithmetic(*, gradients: bool = False) -> Iterator[None]:
    """Compute with the default settings, in this thread, until the block ends.

    Args:
        gradients: Also switch gradients on.
    """
    casting = [kind for kind in AUTOCAST if torch.is_autocast_enabled(kind)]
    elsewhere = torch.empty(0).device.type != "cpu"  # quicker than asking for it
    with np.errstate(all="ignore"):
        if not (casting or elsewhere or gradients):  # in every env step: be quick
            yield
            return
        with contextlib.ExitStack() as stack:
            for kind in casting:
                stack.enter_context(torch.autocast(kind, enabled=False))
            if elsewhere:  # or each call of torch would pass through Python
                stack.enter_context(torch.device("cpu"))
            if gradients:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
            yield


def stream_generator(seed: int, *stream: int) -> torch.Generator:
    """Return a source of randomness of its own.

    Args:
        seed: Of the run or the policy.
        stream: Further numbers that tell sources apart, such as step and process.
    """
    words = np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


@contextlib.contextmanager
def within_memory(work: str, advice: str) -> Iterator[None]:
    """Explain that memory did not suffice.

    Args:
        work: What needs it, such as "Planning for 100 observations".
        advice: What to do, a sentence.

    Raises:
        MemoryLimitError: Memory did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"{work} needs more memory than is available. {advice}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch has no class of its own for the memory of the CPU.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(w in text for w in ALLOCATION)


def unusable(
    tensors: Iterable[tuple[str, Tensor]], *, limit: float = WILD
) -> str | None:
    """Return the name of the first tensor with NaN or too large a number, if any.

    Args:
        tensors: Names and weights.
        limit: Numbers from here on are too large.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            largest = float(tensor.detach().abs().amax())  # NaN, if there is one
            if not largest < limit:
                return name
    return None


def find_device(name: str | torch.device) -> torch.device:
    """Return a device, after making sure that this machine and this PyTorch have it.

    Args:
        name: For example "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: There is none of that name; the message names those there are.
    """
    available = {"cpu": 1}
    if torch.accelerator.is_available():  # if not, PyTorch 2.6 raises instead of None
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            available[accelerator.type] = torch.accelerator.device_count()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):  # no device of any machine
        device = None
    # PyTorch keeps eight bits of a number: "cuda:256" becomes "cuda:0".
    number = str(name if isinstance(name, str) else device).partition(":")[2]
    if device is None or int(number or 0) not in range(available.get(device.type, 0)):
        known = [
            kind if count == 1 else f"{kind} ({count} of them)"
            for kind, count in available.items()
        ]
        raise ConfigError(
            f"There is no device {str(name)!r} (--device on the command line); this "
            f"machine and this PyTorch have: {', '.join(known)}."
        )
    return device
