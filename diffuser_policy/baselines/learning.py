"""What learning methods share: families of them, their training, their checkpoints.

Checkpoints of foreign algorithms hold weights and optimizers' moments in safetensors,
without pickle:

    <module>/<parameter>       the state dict of each module
    <optimizer>/<index>/<moment>

Random state is not saved: every gradient step has its own seed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.build import num_parameters
from diffuser_policy.checkpoint import checksum
from diffuser_policy.errors import CheckpointError
from diffuser_policy.files import replaced_file
from diffuser_policy.training.run import TrainingRun
from diffuser_policy.training.state import Parts, restore, tensors_of

SUM = "sha256"  # in a checkpoint's metadata
SAVE_INTERVAL = 500  # gradient steps between checkpoints


def family_method(
    make: Callable[..., Any],
    name: str,
    purpose: str,
    *,
    settings: Mapping[str, Any],
    **registered: Any,
) -> Callable[..., Any]:
    """Register a method whose settings come from a table, and return its function.

    `make` gets the context and all settings, and returns the policy. The function, of
    `make`'s module, is named like the method, with underscores instead of dashes.
    """

    def function(context: MethodContext, **given: Any) -> Any:
        return make(context, **{**settings, **given})

    kinds = {key: Any if v is None else type(v) for key, v in settings.items()}
    options = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kinds[key]
        )
        for key, value in settings.items()
    ]
    first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    function.__signature__ = inspect.Signature([first, *options])  # type: ignore[attr-defined]
    function.__annotations__ = {"context": MethodContext, **kinds}
    function.__name__ = function.__qualname__ = name.replace("-", "_")
    function.__module__, function.__doc__ = make.__module__, purpose
    return register_method(name, **registered)(function)


def train_run(
    context: MethodContext,
    run: TrainingRun[Any],
    num_steps: int,
    *,
    evaluated: Callable[[], Any] | None = None,
) -> None:
    """Train in a folder of the context's, or resume that, and note the facts.

    `evaluated` returns the policy of the last checkpoint, for the learning curve.
    """
    interval = min(SAVE_INTERVAL, num_steps)
    if evaluated is not None:
        context.num_steps = num_steps
        interval = context.curve_interval
        context.forget_curve(run.step)
        missing = not any(p["step"] == run.step for p in context.curve_points)
        if run.step and missing and context.curve_due(run.step):
            context.curve(run.step, evaluated())  # a kill came between it and the save

    def tell(step: int, losses: Mapping[str, float]) -> None:
        context.progress(step, num_steps, figures=losses)
        if evaluated is not None and context.curve_due(step):
            context.curve(step, evaluated())

    run.run(save_interval=interval, progress=False, on_metrics=tell)
    context.facts |= {
        "num_steps": num_steps,
        "num_parameters": num_parameters(run.networks),
    }


def save_parts(path: Path, parts: Parts, *, step: int, data: object = None) -> None:
    """Write modules, optimizers and JSON-able facts about the data, atomically."""
    tensors, facts = tensors_of(parts), {"step": str(step), "data": json.dumps(data)}
    with replaced_file(path) as partial:
        save_file(tensors, partial, metadata={**facts, SUM: _sum(tensors, facts)})


def _sum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Return a checksum of a checkpoint's tensors and metadata."""
    return checksum(save(dict(tensors)) + f"{facts['step']} {facts['data']}".encode())


def load_parts(path: Path, parts: Parts, *, data: object = None) -> int:
    """Restore modules and optimizers in place; return the gradient steps done.

    Raises:
        CheckpointError: The file is damaged, or of other parts or data.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            step, saved = int(metadata["step"]), json.loads(metadata["data"])
            if saved != data:
                raise ValueError(f"it was trained on other data: {saved}, not {data}")
            # Copies: optimizers keep what they are given, and Windows replaces no file
            # that is mapped.
            keys = file.keys()
            tensors = {key: file.get_tensor(key).clone() for key in keys}
        if metadata[SUM] != _sum(tensors, metadata):
            raise ValueError("its checksum differs: it is damaged")
        restore(parts, tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read, or is of another algorithm or other data "
            f"({error}). Delete it to train again from the beginning."
        ) from error
    return step
