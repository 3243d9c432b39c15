"""What belongs to the user's process, and has to be as it was after any call."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium  # noqa: F401 (importing it, rich and Adam's parts changes some of it)
import numpy as np
import rich.console  # noqa: F401
import torch

torch.optim.Adam([torch.zeros(1)])


def global_state() -> dict[str, Any]:
    """Return everything global that a library might change."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch's generator": bytes(torch.get_rng_state().numpy()),
        "NumPy's generator": (name, bytes(np.asarray(keys)), rest),
        "Python's generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "NumPy's errors": np.geterr(),
        "NumPy's printing": repr(np.get_printoptions()),
        "warning filters": list(warnings.filters),
    }


@contextmanager
def untouched() -> Iterator[None]:
    """Fail if the block changes anything global, also where it raises."""
    before = global_state()
    try:
        yield
    finally:
        after = global_state()
        assert [name for name in before if before[name] != after[name]] == []


@contextmanager
def float64() -> Iterator[None]:
    """Make double precision the default."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Make another device the default: one that has no numbers at all."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


USERS_SETTINGS: dict[str, Any] = {
    "float64": float64,
    "another device": elsewhere,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
}
