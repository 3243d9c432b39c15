r"""Models of the dynamics to plan in: a simulator, an ensemble, or a denoiser.

`DynamicsEnsemble` is learned one-step dynamics, several networks each with an opinion
(Chua et al. 2018, "PETS", with deterministic members):

    normalized (state, action) → network e → normalized change of state → next state

Every member has its own first weights and its own batches, and imagines whole
trajectories by itself: where the data say little, members disagree, and a plan is worth
the mean of what they promise. Imagined states are kept within twice the range of the
data, so that returns stay finite; a tighter limit would act as a wall that does not
exist, and plans would exploit it.

`DiffuserDynamics` is a denoiser; actions are pinned, states are filled in:

    pinned: first state, all actions  →  denoised: the states in between

(The ablation of Janner et al. 2022: a conventional optimizer that plans in the
learnt distribution of trajectories, instead of sampling plans from it.) Nothing forces
a denoiser to believe the actions it is given: it learnt what demonstrators do next, and
the actions of demonstrators follow from where they are going.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from diffuser_policy.baselines.learning import train_run
from diffuser_policy.baselines.shooting import Model
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.build import seeded
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.envs import Env
from diffuser_policy.errors import (
    ConditionError,
    ConfigError,
    DatasetError,
    SpaceMismatchError,
)
from diffuser_policy.planning.planner import Planner
from diffuser_policy.settings import positive
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.run import Networks, TrainingRun
from diffuser_policy.training.trainer import Trainer
from diffuser_policy.words import counted

EMA_DECAY = 0.99  # short: the step size falls to zero in any case
SLACK = 0.5  # of the data's range, on either side: where imagination ends
CONSTANT = 1e-6  # columns that spread less are not scaled
ACTION_PLANNER_STEPS = 6000
ACTION_PLANNER_HORIZON = 64


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """What is trained, besides the data."""

    num_members: int = 5  # networks
    width: int = 128  # units of each of their hidden layers
    num_layers: int = 2  # hidden layers
    num_steps: int = 20_000  # gradient steps
    batch_size: int = 256  # transitions per member and gradient step
    learning_rate: float = 1e-3  # Adam's first step size, which falls to 0 as a cosine
    seed: int = 0  # of weights and batches

    def __post_init__(self) -> None:
        """Check ranges."""
        positive(self, "num_members", "width", "num_layers", "num_steps")
        positive(self, "batch_size", "learning_rate")


class Ensemble(nn.Module):
    """Several perceptrons of the same sizes, each with weights of its own."""

    def __init__(self, inputs: int, outputs: int, config: DynamicsConfig) -> None:
        """Draw the weights.

        Args:
            inputs: Numbers that each member reads.
            outputs: Numbers that it returns.
            config: Members, hidden layers and their width.
        """
        super().__init__()
        hidden, num_members = [config.width] * config.num_layers, config.num_members
        sizes = [inputs, *hidden, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            weight = torch.empty(num_members, fan_in, fan_out).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_members, 1, fan_out)))

    @property
    def num_members(self) -> int:
        """How many networks there are."""
        return len(self.biases[0])

    def outputs(self, x: Tensor) -> Tensor:
        """Return each member's outputs `[members, n, outputs]` for its own inputs."""
        last = len(self.weights) - 1
        for layer, weight in enumerate(self.weights):
            x = torch.baddbmm(self.biases[layer], x, weight)
            if layer < last:
                x = nn.functional.silu(x)
        return x


class DynamicsEnsemble(Ensemble):
    """Predicts next states; a `Model` of `diffuser_policy.baselines.shooting`."""

    moments: Tensor
    limits: Tensor

    def __init__(
        self,
        state_size: int,
        action_size: int,
        config: DynamicsConfig,
        *,
        num_outcomes: int = 0,
    ) -> None:
        """Draw the weights.

        Args:
            state_size: Numbers of a state.
            action_size: Numbers of an action.
            config: Members, hidden layers and their width.
            num_outcomes: What is predicted besides the state, for subclasses.
        """
        super().__init__(state_size + action_size, state_size + num_outcomes, config)
        self.state_size, self.action_size = state_size, action_size
        # Rows: shift and scale; columns: state, action, change of state.
        columns = 2 * state_size + action_size
        blank = torch.stack([torch.zeros(columns), torch.ones(columns)])
        self.register_buffer("moments", blank)
        self.register_buffer("limits", torch.full((2, state_size), torch.inf))

    def fit_moments(
        self, states: np.ndarray, actions: np.ndarray, following: np.ndarray
    ) -> None:
        """Measure how inputs and outputs are scaled; arguments as of `transitions`."""
        rows = np.concatenate([states, actions, following - states], axis=1)
        self.moments.copy_(moments(rows))
        limits = np.stack([following.min(axis=0), following.max(axis=0)])
        self.limits.copy_(torch.from_numpy(limits))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return each member's normalized change of state `[members, n, state]`.

        States `[members, n, state]` and actions are in environment units.
        """
        shift, scale = self.moments[:, : self.state_size + self.action_size]
        return self.outputs((torch.cat([states, actions], dim=-1) - shift) / scale)

    def following(self, states: Tensor, changes: Tensor) -> Tensor:
        """Return the next states `[members, n, state]` after normalized changes."""
        shift, scale = self.moments[:, -self.state_size :]
        low, high = self.limits
        slack = SLACK * (high - low)
        following: Tensor = states + shift + scale * changes
        return following.clamp(low - slack, high + slack)

    def changes(self, states: Tensor, following: Tensor) -> Tensor:
        """Return the normalized changes `[members, n, state]` that lead to states."""
        shift, scale = self.moments[:, -self.state_size :]
        changes: Tensor = (following - states - shift) / scale
        return changes

    @torch.inference_mode()
    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return what every member imagines, `[members, n, steps, state]`.

        Raises:
            SpaceMismatchError: States or actions of another size.
        """
        _check_sizes(states, actions, self.state_size, self.action_size)
        first, pushes = _tensor(states), _tensor(actions)
        x = first.expand(self.num_members, *first.shape)
        imagined = []
        for step in range(pushes.shape[1]):
            action = pushes[:, step].expand(self.num_members, -1, -1)
            x = self.following(x, self(x, action))
            imagined.append(x)
        return torch.stack(imagined, dim=2).numpy()


def moments(rows: np.ndarray) -> Tensor:
    """Return mean and standard deviation of the rows, `[2, …]`."""
    mean = rows.mean(axis=0, dtype=np.float64)
    std = rows.std(axis=0, dtype=np.float64)
    std = np.where(std < CONSTANT, 1.0, std)
    return torch.from_numpy(np.stack([mean, std]).astype(np.float32))


class EnsembleRun(TrainingRun[Networks]):
    """Trains networks on the CPU from the checkpoint in a folder, if there is one."""

    def __init__(
        self,
        networks: Networks,
        *,
        config: DynamicsConfig,
        flat: FlatDataset,
        output: Path,
        **settings: Any,
    ) -> None:
        """Hold the networks.

        Args:
            networks: What is trained.
            config: Settings of the networks and of the training.
            flat: The data.
            output: Folder of the run.
            settings: Others that determine the weights, as JSON data.

        Raises:
            ConfigError: The folder holds a run with other settings or other data.
        """
        super().__init__(
            networks,
            seed=config.seed,
            optimization=OptimizationConfig(
                num_steps=config.num_steps,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                ema_decay=EMA_DECAY,
            ),
            settings={**asdict(config), **settings, "data": flat.facts},
            output=output,
            processes=Processes.single("cpu"),
        )

    def write_planner(self) -> None:
        """Write nothing: the checkpoint has the averaged weights."""


class DynamicsRun(EnsembleRun[DynamicsEnsemble]):
    """Trains an ensemble from the latest checkpoint in its folder, if there is one.

    Raises:
        ConfigError: The folder holds a run with other settings or other data.
        DatasetError: The data holds no two successive states.
    """

    def __init__(self, config: DynamicsConfig, flat: FlatDataset, output: Path) -> None:
        self.transitions, self.config = transitions(flat), config
        with seeded(config.seed):
            ensemble = DynamicsEnsemble(flat.observation_size, flat.action_size, config)
        ensemble.fit_moments(*self.transitions)
        super().__init__(ensemble, config=config, flat=flat, output=output)

    def losses(
        self,
        step: int,  # noqa: ARG002 (transitions have no length to draw)
        generator: Generator,
    ) -> dict[str, Tensor]:
        """Return the mean squared error, summed over members, each on its own batch."""
        ensemble = self.networks
        size = (ensemble.num_members, self.config.batch_size)
        rows = torch.randint(len(self.transitions[0]), size, generator=generator)
        states, actions, following = (
            torch.from_numpy(part[rows.numpy()]) for part in self.transitions
        )
        error = ensemble(states, actions) - ensemble.changes(states, following)
        return {"dynamics": error.square().mean(dim=(1, 2)).sum()}

    @property
    def ensemble(self) -> DynamicsEnsemble:
        """The averaged networks, with which to plan."""
        return self.average


def transitions(flat: FlatDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states `[n, state]`, actions `[n, action]` and the states after them.

    States are observations. The last row of a run and terminal rows have no next state.

    Raises:
        DatasetError: There are no two successive states.
    """
    rows = np.flatnonzero(flat.followed & ~flat.fields["terminated"])
    if not len(rows):
        raise DatasetError(
            f"{flat!r} holds no two successive states, so there are no dynamics to "
            f"learn. Record runs of two steps or more."
        )
    observations, actions = flat.fields["observation"], flat.fields["action"]
    return observations[rows], actions[rows], observations[rows + 1]


def _check_sizes(
    states: np.ndarray, actions: np.ndarray, state_size: int, action_size: int
) -> None:
    """Refuse states and actions of other sizes than those of a model."""
    given = (states.shape[-1], actions.shape[-1])
    if given != (state_size, action_size):
        raise SpaceMismatchError(
            f"These dynamics take states with {state_size:,} and actions with "
            f"{counted(action_size, 'column')}; got {given[0]:,} and {given[1]:,}."
        )


class DiffuserDynamics:
    """Predicts states by inpainting; a `Model` of `diffuser_policy.baselines.shooting`.

    The same states and actions are always denoised from the same noise.

    Raises:
        ConfigError: A planner that plans no actions, or not for every env step.
    """

    def __init__(self, planner: Planner, *, seed: int = 0) -> None:
        layout, stride = planner.layout, planner.stride
        if layout.action_dim == 0 or stride != 1:
            raise ConfigError(
                "A planner can serve as a model of the dynamics only if it plans an "
                f"action for every env step; this one has stride {stride} and "
                f"{layout.action_dim} action columns. Train one with window.actions "
                "and window.stride=1."
            )
        self.planner, self.seed = planner, seed
        # Env steps that can be predicted: the last action's effect is not.
        self.max_steps = planner.horizons.max_planning_steps - 1

    @torch.no_grad()
    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the states that the denoiser fills in, `[n, steps, state]`.

        Actions after the given ones are its own.

        Raises:
            SpaceMismatchError: States or actions of another size.
            ConditionError: More steps than a trajectory has.
        """
        planner, layout = self.planner, self.planner.layout
        _check_sizes(states, actions, layout.observation_dim, layout.action_dim)
        num_rows, num_steps = actions.shape[:2]
        if not 1 <= num_steps <= self.max_steps:
            raise ConditionError(
                f"A trajectory of {self.max_steps + 1} planning steps predicts where "
                f"1 to {self.max_steps} actions lead, not {num_steps}. Shorten the "
                "horizon."
            )
        pinned = Conditions().pin(0, "observation", _tensor(states))
        for step in range(num_steps):
            pinned = pinned.pin(step, "action", _tensor(actions[:, step]))
        samples = planner.sampler.sample(
            pinned.compile(
                layout,
                planner.normalizer,
                num_planning_steps=self.max_steps + 1,
                batch_size=num_rows,
            ),
            [torch.Generator().manual_seed(self.seed) for _ in range(num_rows)],
        )
        trajectories = planner.normalizer.unnormalize(samples.trajectories[:, 0]).cpu()
        planned = trajectories[:, 1 : num_steps + 1, layout.observations]
        return planned.numpy()


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))


# --- models in a benchmark ------------------------------------------------------------


def simulator_of(env: Env) -> Model:
    """Return an environment's own simulator, as the mazes offer it.

    Raises:
        ConfigError: The environment offers none.
    """
    base: Any = env.unwrapped
    if not callable(getattr(base, "simulate", None)):
        raise ConfigError(
            f"{type(base).__name__} has no simulate(states [n, state], actions [n, "
            f"steps, action]), which planning in the true simulator needs. The mazes "
            f"have it; elsewhere use mppi-learned or cem-learned."
        )
    model: Model = base
    return model


def learn_dynamics(
    context: MethodContext, *, num_members: int, width: int
) -> DynamicsEnsemble:
    """Train one-step dynamics on the problem's data, or resume that."""
    config = DynamicsConfig(
        num_members=num_members,
        width=width,
        num_steps=context.num_steps or DynamicsConfig.num_steps,
        seed=context.seed,
    )
    run = DynamicsRun(config, context.dataset, context.folder)
    train_run(context, run, config.num_steps)
    return run.ensemble


def train_action_planner(context: MethodContext) -> Path:
    """Train a Diffuser that plans actions for every env step; return its folder."""
    num_steps = context.num_steps or ACTION_PLANNER_STEPS
    config = TrainConfig(
        dataset=context.problem.dataset,
        window=WindowConfig(
            horizon=ACTION_PLANNER_HORIZON,
            min_horizon=ACTION_PLANNER_HORIZON,
            stride=1,
            actions=True,
            hindsight_goal="none",
        ),
        network=NetworkConfig(dim=32, multipliers=(1, 2, 4)),
        optimization=OptimizationConfig(num_steps=num_steps, batch_size=64),
        planner=PlannerConfig(horizon="fixed", ranking="first"),
        execution=ExecutionConfig(executor="actions"),
        seed=context.seed,
    )
    train_run(context, Trainer(config, context.dataset, context.folder), num_steps)
    return context.folder
