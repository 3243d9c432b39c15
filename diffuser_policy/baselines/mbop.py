r"""Model-based offline planning: imagined steps, near what the data does.

MBOP (Argenson & Dulac-Arnold 2021) is MPPI (`shooting`) whose plans are drawn around a
clone of the data's behavior, and end in a learned value. In each env step, N plans of H
steps are imagined, each by one member of three ensembles:

$$a_t = (1 - \beta)(\pi(s_t) + \sigma \epsilon) + \beta a'_t$$
$$R = \sum_{t<H} \gamma^t c_t r(s_t, a_t) + \gamma^H c_H V(s_H)$$

with the clone π, noise ε ~ N(0, 1), the rest a' of the last plan, predicted rewards r,
and the probability c_t that nothing terminated before step t. The new plan is the mean
of the drawn ones, weighted by exp(κ R), with R scaled to a standard deviation of 1 over
the drawn plans. V is the return of the data from a state on.

The paper's value covers as many steps as a plan and its model knows no terminations;
walking robots fall. Its rewards and values are means over the ensemble, where one
member imagines all of a plan here; its clone and value also read the previous action,
and its returns are not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor, nn

from diffuser_policy.baselines.dynamics import (
    DynamicsConfig,
    DynamicsEnsemble,
    Ensemble,
    EnsembleRun,
    moments,
)
from diffuser_policy.baselines.learning import train_run
from diffuser_policy.baselines.shooting import ShootingState, check_rows
from diffuser_policy.benchmark.context import MethodContext, flat_observation
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.build import seeded
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import returns_to_go
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.spaces import action_box, into_box

NUM_STEPS = 20_000  # without a budget


class Imagined(NamedTuple):
    """One imagined step of every member.

    Attributes:
        states: `[members, n, state]` afterwards.
        rewards: `[members, n]`.
        continues: `[members, n]` probability that the episode goes on.
    """

    states: Tensor
    rewards: Tensor
    continues: Tensor


class OutcomeEnsemble(DynamicsEnsemble):
    """Dynamics that also predict rewards and terminations."""

    reward_moments: Tensor

    def __init__(
        self, state_size: int, action_size: int, config: DynamicsConfig
    ) -> None:
        """Draw the weights; arguments as of `DynamicsEnsemble`."""
        super().__init__(state_size, action_size, config, num_outcomes=2)
        self.register_buffer("reward_moments", torch.tensor([0.0, 1.0]))

    def step(self, states: Tensor, actions: Tensor) -> Imagined:
        """Imagine a step from `[members, n, state]` by actions, in env units."""
        found = self(states, actions)
        mean, std = self.reward_moments
        return Imagined(
            self.following(states, found[..., : self.state_size]),
            mean + std * found[..., -2],
            torch.sigmoid(-found[..., -1]),
        )

    @torch.inference_mode()
    def rewards(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the members' mean reward `[n]` of actions in states `[n, state]`."""
        rows = (torch.as_tensor(np.array(x, np.float32)) for x in (states, actions))
        first, pushes = (x.expand(self.num_members, *x.shape) for x in rows)
        return self.step(first, pushes).rewards.mean(dim=0).numpy()


class Steps(NamedTuple):
    """Steps of the data, float32.

    Attributes:
        states: `[n, state]`.
        actions: `[n, action]`.
        following: `[n, state]`; of no meaning where `ended`.
        rewards: `[n]`.
        ended: `[n]` 1 where the step terminated.
        returns: `[n]` discounted return from the step on.
    """

    states: np.ndarray
    actions: np.ndarray
    following: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray
    returns: np.ndarray

    @classmethod
    def of(cls, flat: FlatDataset, discount: float) -> Steps:
        """Return all steps but those that were cut off.

        Raises:
            DatasetError: There are none, or all returns are alike.
        """
        rows, fields = flat.known_steps(), flat.fields
        later = np.minimum(rows + 1, flat.num_rows - 1)
        return cls(
            fields["observation"][rows],
            fields["action"][rows],
            fields["observation"][later],
            fields["reward"][rows].astype(np.float32),
            fields["terminated"][rows].astype(np.float32),
            returns_to_go(flat, discount)[rows],
        )


class OfflineModel(nn.Module):
    """What is learned: dynamics with outcomes, the behavior, and its value."""

    state_moments: Tensor
    return_moments: Tensor
    box: Tensor

    def __init__(self, steps: Steps, config: DynamicsConfig, space: spaces.Box) -> None:
        """Draw the weights, and measure how data and actions are scaled."""
        super().__init__()
        state, action = steps.states.shape[1], steps.actions.shape[1]
        self.dynamics = OutcomeEnsemble(state, action, config)
        goes_on = steps.ended == 0
        if not goes_on.any():
            raise DatasetError(
                "Every step of the data terminates: there are no dynamics to learn."
            )
        self.dynamics.fit_moments(
            *(part[goes_on] for part in (steps.states, steps.actions, steps.following))
        )
        self.dynamics.reward_moments.copy_(moments(steps.rewards))
        self.behavior = Ensemble(state, action, config)
        self.value = Ensemble(state, 1, config)
        self.register_buffer("state_moments", moments(steps.states))
        self.register_buffer("return_moments", moments(steps.returns))
        low, high = (end.reshape(-1) / 2 for end in (space.low, space.high))
        box = torch.from_numpy(np.stack([high + low, high - low]).astype(np.float32))
        self.register_buffer("box", box, persistent=False)  # center and half

    def scaled(self, states: Tensor) -> Tensor:
        """Return states as clone and value read them."""
        mean, std = self.state_moments
        scaled: Tensor = (states - mean) / std
        return scaled

    def cloned(self, states: Tensor) -> Tensor:
        """Return each member's action `[members, n, action]` in its own states."""
        center, half = self.box
        found: Tensor = center + half * self.behavior.outputs(self.scaled(states))
        return found

    def values(self, states: Tensor) -> Tensor:
        """Return each member's value `[members, n]` of its own states."""
        mean, std = self.return_moments
        found: Tensor = mean + std * self.value.outputs(self.scaled(states))[..., 0]
        return found


class OfflineRun(EnsembleRun[OfflineModel]):
    """Trains the model from the latest checkpoint in its folder, if there is one."""

    def __init__(
        self,
        config: DynamicsConfig,
        flat: FlatDataset,
        output: Path,
        *,
        space: spaces.Box,
        discount: float,
    ) -> None:
        """Build networks and data.

        Raises:
            ConfigError: The folder holds a run with other settings or other data.
            DatasetError: Data from which there is nothing to learn.
        """
        self.steps, self.config = Steps.of(flat, discount), config
        with seeded(config.seed):
            model = OfflineModel(self.steps, config, space)
        super().__init__(
            model,
            config=config,
            flat=flat,
            output=output,
            discount=discount,
            box=model.box.tolist(),
        )

    def losses(
        self,
        step: int,  # noqa: ARG002 (steps have no length to draw)
        generator: Generator,
    ) -> dict[str, Tensor]:
        """Return the losses of all three ensembles, summed over members.

        Every member has batches of its own.
        """
        model, dynamics = self.networks, self.networks.dynamics
        size = (dynamics.num_members, self.config.batch_size)
        rows = torch.randint(len(self.steps.states), size, generator=generator).numpy()
        batch = (torch.from_numpy(part[rows]) for part in self.steps)
        states, actions, following, rewards, ended, returns = batch
        found, goes_on = dynamics(states, actions), 1 - ended
        changes = dynamics.changes(states, following)
        error = (found[..., : dynamics.state_size] - changes).square().mean(dim=-1)
        mean, std = dynamics.reward_moments
        paid = (found[..., -2] - (rewards - mean) / std).square()
        ends = nn.functional.binary_cross_entropy_with_logits(
            found[..., -1], ended, reduction="none"
        )
        inputs, (center, half) = model.scaled(states), model.box
        meant = (actions - center) / torch.where(half > 0, half, 1.0)
        cloned = (model.behavior.outputs(inputs) - meant).square().mean(dim=-1)
        mean, std = model.return_moments
        wrong = model.value.outputs(inputs)[..., 0] - (returns - mean) / std
        return {
            "dynamics": (goes_on * error + paid + ends).mean(dim=1).sum(),
            "behavior": cloned.mean(dim=1).sum(),
            "value": wrong.square().mean(dim=1).sum(),
        }


class OfflinePlanner:
    """Plans for all environments of a batch at once; takes `predict`'s arguments."""

    def __init__(
        self,
        model: OfflineModel,
        space: spaces.Box,
        *,
        horizon: int,
        num_samples: int,
        noise: float,
        mixing: float,
        sharpness: float,
        discount: float,
        seed: int = 0,
    ) -> None:
        """Hold the model; the other arguments are the settings of `mbop`."""
        self.model, self.space, self.seed = model, space, seed
        self.horizon, self.num_samples = horizon, num_samples
        self.noise, self.mixing, self.sharpness = noise, mixing, sharpness
        self.discount = discount
        ends = np.stack([space.low.reshape(-1), space.high.reshape(-1)])
        self._low, self._high = torch.from_numpy(ends.astype(np.float32))

    def initial_state(
        self, num_envs: int, streams: np.ndarray | None = None
    ) -> ShootingState:
        """Return the state before the first step, as `ShootingPolicy` does."""
        shape = (self.horizon, len(self._low))
        return ShootingState.initial(num_envs, shape, streams, dtype=np.float32)

    @torch.inference_mode()
    def predict(
        self,
        observation: Any,
        state: ShootingState | None = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG002 (searching is what it does)
    ) -> tuple[np.ndarray, ShootingState]:
        """Return actions, and what to pass as `state` the next time.

        Raises:
            ObservationError: A state of another number of environments.
        """
        given = flat_observation(observation)
        rows = np.atleast_2d(given)
        state = self.initial_state(len(rows)) if state is None else state
        check_rows(state.ages, len(rows))
        ages = state.ages.copy()
        if episode_start is not None:
            ages[np.broadcast_to(np.asarray(episode_start, np.bool_), len(rows))] = -1
        left = np.concatenate([state.plans[:, 1:], state.plans[:, -1:]], axis=1)
        shape = (self.num_samples, *left.shape[1:])
        noise = [
            np.random.default_rng((self.seed, *pair)).standard_normal(shape, np.float32)
            for pair in zip(
                state.streams.tolist(), state.num_plans.tolist(), strict=True
            )
        ]
        plans = self._plans(
            torch.from_numpy(rows.astype(np.float32)),
            torch.from_numpy(left),
            torch.from_numpy(np.stack(noise)),
            torch.from_numpy(np.where(ages < 0, 0.0, self.mixing).astype(np.float32)),
        ).numpy()
        actions = into_box(self.space, plans[:, 0])
        following = ShootingState(plans, ages + 1, state.streams, state.num_plans + 1)
        return (actions[0] if given.ndim == 1 else actions), following

    def _plans(
        self, first: Tensor, left: Tensor, noise: Tensor, mixing: Tensor
    ) -> Tensor:
        """Return new plans `[n, steps, action]`.

        Args:
            first: `[n, state]`.
            left: `[n, steps, action]` of the last plans.
            noise: `[n, samples, steps, action]`.
            mixing: `[n]` share of the last plan.
        """
        model, members = self.model, self.model.dynamics.num_members
        count, share = len(first), self.num_samples // members

        def dealt(values: Tensor) -> Tensor:
            """Deal `[n, samples, …]` out to the members: `[members, n · share, …]`."""
            parts = values.reshape(count, members, share, *values.shape[2:])
            return parts.transpose(0, 1).flatten(1, 2)

        def every(values: Tensor) -> Tensor:
            """Return `[n, …]` for every sample of every member."""
            return dealt(values[:, None].expand(-1, members * share, *values.shape[1:]))

        x, old, mix = every(first), every(left), every(mixing)[..., None]
        spread = self.noise * (self._high - self._low) / 2 * dealt(noise)
        total, continues = torch.zeros(x.shape[:2]), torch.ones(x.shape[:2])
        drawn = []
        for step in range(self.horizon):
            action = model.cloned(x) + spread[:, :, step]
            action = (1 - mix) * action + mix * old[:, :, step]
            action = action.clamp(self._low, self._high)
            drawn.append(action)
            imagined = model.dynamics.step(x, action)
            weight = self.discount**step * continues
            total += weight * imagined.rewards
            x, continues = imagined.states, continues * imagined.continues
        total += self.discount**self.horizon * continues * model.values(x)

        def gathered(values: Tensor) -> Tensor:
            """Undo `dealt`."""
            parts = values.reshape(members, count, share, *values.shape[2:])
            return parts.transpose(0, 1).flatten(1, 2)

        returns, plans = gathered(total), gathered(torch.stack(drawn, dim=2))
        deviation = returns.std(dim=1, correction=0, keepdim=True).clamp_min(1e-8)
        weights = (self.sharpness * returns / deviation).softmax(dim=1)
        return torch.einsum("nk,nkha->nha", weights, plans)


def _refuse(problem: Problem, settings: Mapping[str, Any]) -> None:
    members, samples = settings["num_members"], settings["num_samples"]
    if members < 1 or samples < 1 or samples % members or settings["horizon"] < 1:
        raise ConfigError(
            f"num_samples must be a multiple of num_members, and both and horizon "
            f"positive; got num_samples={samples}, num_members={members}, horizon="
            f"{settings['horizon']}."
        )
    if not 0 <= settings["mixing"] < 1 or not 0 < settings["discount"] < 1:
        raise ConfigError(
            f"mixing must be in [0, 1) and discount in (0, 1); got mixing="
            f"{settings['mixing']} and discount={settings['discount']}."
        )
    if settings["noise"] < 0:
        raise ConfigError(f"noise must be 0 or more, got {settings['noise']}.")
    DynamicsConfig(num_members=members, width=settings["width"])
    with closing(problem.make_env()) as env:
        action_box(env.action_space)
        seen = env.observation_space
        if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
            raise ConfigError(
                "mbop needs observations that are a single array without goals, of one "
                f"axis; {problem.env} observes {seen}. Use mppi-learned, or wrap the "
                f"environment in gymnasium.wrappers.FlattenObservation."
            )


@register_method(
    "mbop", label="MBOP", goals=("none",), num_steps=NUM_STEPS, refuses=_refuse
)
def mbop(
    context: MethodContext,
    *,
    width: int = 128,
    num_members: int = 4,
    horizon: int = 4,
    num_samples: int = 64,
    noise: float = 0.2,
    mixing: float = 0.2,
    sharpness: float = 1.0,
    discount: float = 0.99,
) -> OfflinePlanner:
    """Plan in learned dynamics, near a clone of the behavior.

    Args:
        context: The method's context; training resumes from its folder's checkpoint.
        width: Units of each hidden layer.
        num_members: Networks of each ensemble.
        horizon: Env steps of a plan, H.
        num_samples: Plans that are drawn in each env step, N.
        noise: σ, in units of half of the actions' range.
        mixing: β.
        sharpness: κ.
        discount: γ.

    Raises:
        DatasetError: Data from which there is nothing to learn.
    """
    torch.set_num_threads(1)
    env = context.make_env()
    env.close()
    space: Any = env.action_space
    run = learn_outcomes(
        context,
        context.folder,
        space=space,
        discount=discount,
        config=DynamicsConfig(
            num_members=num_members,
            width=width,
            num_steps=context.num_steps or NUM_STEPS,
            seed=context.seed,
        ),
    )
    return OfflinePlanner(
        run.average,
        space,
        horizon=horizon,
        num_samples=num_samples,
        noise=noise,
        mixing=mixing,
        sharpness=sharpness,
        discount=discount,
        seed=context.seed,
    )


def learn_outcomes(
    context: MethodContext,
    folder: Path,
    *,
    space: spaces.Box,
    discount: float,
    config: DynamicsConfig,
) -> OfflineRun:
    """Train a model of the problem's data in a folder, or resume that.

    Args:
        context: The method's context.
        folder: Where checkpoints are.
        space: Of actions.
        discount: Of the returns that the value predicts.
        config: What is trained.
    """
    run = OfflineRun(config, context.dataset, folder, space=space, discount=discount)
    train_run(context, run, config.num_steps)
    return run
