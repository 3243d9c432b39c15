"""Gradient steps with an algorithm of d3rlpy: our batches, its updates.

d3rlpy has neither hindsight nor datasets of several million rows in mind, and draws
batches in Python row by row. So `transitions` makes the batches, and the algorithm does
one `update` at a time. Step i draws from generators of `(seed, i)`, so a training that
was killed resumes to the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from diffuser_policy.baselines.codec import Codec
from diffuser_policy.baselines.transitions import Batch, make_transitions
from diffuser_policy.baselines.values import value_facts
from diffuser_policy.baselines.weights import load_parts, num_parameters, save_parts
from diffuser_policy.benchmark.context import FlatPolicy, MethodContext
from diffuser_policy.errors import ConfigError, require_extra

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_STEPS = 1_000
PROGRESS_STEPS = 100
NUM_RATED = 10_000  # transitions whose rewards and values are looked at


class D3rlpyPolicy(FlatPolicy):
    """A trained algorithm in the environment's units; always its best action.

    Args:
        algorithm: Of d3rlpy, for scaled inputs and actions.
        codec: Scales them.
    """

    def __init__(self, algorithm: Any, codec: Codec) -> None:
        super().__init__(algorithm)
        self.codec = codec

    def act(self, rows: np.ndarray) -> np.ndarray:
        """Return actions `[n, actions]` for rows `[n, inputs]`, both unscaled."""
        return self.codec.decode(super().act(self.codec.inputs(rows)), rows)


def train_d3rlpy(
    context: MethodContext, config: Any, *, goal_discount: float = 0.99
) -> D3rlpyPolicy:
    """Train an algorithm until the context says that it is finished.

    Args:
        context: Of the method; training resumes from the checkpoint in its folder.
        config: Of the algorithm, such as `d3rlpy.algos.IQLConfig(...)`.
        goal_discount: For goals in hindsight.

    Raises:
        ConfigError: Losses are no longer finite.
    """
    torch.set_num_threads(1)
    transitions = make_transitions(
        context.problem, context.dataset, goal_discount=goal_discount
    )
    torch.manual_seed(context.seed)
    algorithm = config.create()
    algorithm.create_impl((transitions.num_inputs,), transitions.num_actions)
    policy = D3rlpyPolicy(algorithm, transitions.codec)
    rated = transitions.batch(np.random.default_rng(context.seed), NUM_RATED)
    step = take_steps(
        context,
        policy,
        lambda rng: mini_batch(transitions.batch(rng, config.batch_size)),
    )
    modules = algorithm.impl.modules.get_torch_modules().items()
    context.facts |= {
        "num_steps": step,
        # Target networks are copies.
        "num_parameters": num_parameters(
            *(module for name, module in modules if not name.startswith("targ_"))
        ),
        "values": value_facts(algorithm, rated),
    }
    return policy


def take_steps(
    context: MethodContext, policy: Any, draw: Callable[[Generator], Any]
) -> int:
    """Take gradient steps, from the checkpoint in the method's folder if it has one.

    Args:
        context: Says when to stop.
        policy: For the learning curve; its `algorithm` takes the steps.
        draw: Returns a batch as the algorithm's `update` takes it.

    Returns:
        The number of gradient steps in the end.

    Raises:
        ConfigError: Losses are no longer finite.
        CheckpointError: The checkpoint is damaged, or of another algorithm.
    """
    algorithm, path = policy.algorithm, context.folder / CHECKPOINT
    parts: dict[str, Any] = {}
    for name, value in vars(algorithm.impl.modules).items():
        if isinstance(value, torch.nn.Module):
            parts[name] = value
        elif hasattr(value, "optim"):
            parts[name] = value.optim
    data = context.data_facts
    step = load_parts(path, parts, data=data) if path.is_file() else 0
    context.forget_curve(step)
    algorithm.set_grad_step(step)
    while not context.finished(step):
        rng = np.random.default_rng((context.seed, step))
        torch.manual_seed(int(rng.integers(2**62)))
        losses = algorithm.update(draw(rng))
        step += 1
        if step % PROGRESS_STEPS == 0:
            if not np.isfinite(list(losses.values())).all():
                raise ConfigError(
                    f"The losses are not finite after {step} gradient steps: {losses}. "
                    f"Lower the learning rate, or look for outliers in the data."
                )
            context.progress(step, figures=losses)
        if context.curve_due(step):
            context.curve(step, policy)
        if step % CHECKPOINT_STEPS == 0:
            save_parts(path, parts, step=step, data=data)
    save_parts(path, parts, step=step, data=data)
    return step


def mini_batch(batch: Batch) -> Any:
    """Return a batch as d3rlpy takes it."""
    dataset = require_extra("d3rlpy.dataset", "baselines")
    return dataset.TransitionMiniBatch(
        observations=batch.observations,
        actions=batch.actions,
        rewards=batch.rewards,
        next_observations=batch.next_observations,
        next_actions=batch.next_actions,
        terminals=batch.terminals,
        intervals=np.ones_like(batch.rewards),
        transitions=[],
    )
