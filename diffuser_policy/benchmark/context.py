"""The context of a method: its problem, its data, its folder, and its learning curve.

A method takes gradient steps until `finished` says so, reports them with `progress`,
lets its policy be evaluated with `curve` every now and then, and keeps checkpoints in
`folder`, so that it can be called again after a kill. `as_policy` brings policies of
other libraries to Stable-Baselines3's contract; `CheckedPolicy` refuses actions outside
of the action space, which environments would clip in silence.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces

from diffuser_policy.benchmark.cells import CURVE_SEED, Cell, CellFolder
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import load_flat
from diffuser_policy.envs import Env, action_and_state, env_name
from diffuser_policy.errors import ConfigError, EnvContractError, shown
from diffuser_policy.evaluation import Evaluation, evaluate
from diffuser_policy.evaluation.loop import has_rows
from diffuser_policy.evaluation.report import to_json as evaluation_json
from diffuser_policy.spaces import fitted, outside

PROGRESS_SECONDS = 2.0
POINTS = 3  # at the end of a learning curve, compared with as many before them


class MethodContext:
    """What a method gets to train with.

    Attributes:
        problem: What to learn.
        seed: Fixes everything random.
        settings: All of the method's settings, defaults included.
        num_steps: Gradient steps to take at least; none: the method's own choice.
        max_steps: Gradient steps to take at most.
        facts: JSON-able facts about the training, which the result keeps.
        curve_points: The learning curve so far.
        seconds: `<stage>_seconds` and `<stage>_cpu_seconds` over all attempts, and the
            number of `attempts`. What a killed process spent since it last reported is
            lost, and all of it if a power cut damages the file.
    """

    def __init__(
        self,
        cell: Cell,
        files: CellFolder,
        settings: Mapping[str, Any],
        *,
        num_steps: int | None = None,
    ) -> None:
        """Read what earlier attempts left in a cell's folder.

        The method's own `num_steps` count where the cell sets no budget.
        """
        self.problem = cell.problem
        self.seed = cell.seed
        self.settings = dict(settings)
        self.num_steps = cell.num_steps or num_steps
        self.max_steps = cell.max_steps or self.num_steps
        self.facts: dict[str, Any] = {}
        self.curve_points: list[dict[str, Any]] = files.read("curve") or []
        self.seconds: dict[str, float] = files.read("clock") or {"attempts": 0}
        self.seconds["attempts"] += 1
        self._cell, self._files = cell, files
        self._reported, self._stage = 0.0, ""
        self._counted = time.perf_counter(), time.process_time()

    @property
    def folder(self) -> Path:
        """The method's own folder for checkpoints and weights; it survives kills."""
        self._files.work.mkdir(parents=True, exist_ok=True)
        return self._files.work

    @cached_property
    def dataset(self) -> FlatDataset:
        """The problem's data as long arrays.

        Raises:
            DatasetNotFoundError: It is not on this machine.
        """
        return load_flat(self.problem.dataset, progress=False)

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Rows and checksum of the data, which tell apart data of the same name."""
        return self.dataset.facts

    def make_env(self) -> Env:
        """Make the problem's environment."""
        return self.problem.make_env()

    def progress(
        self,
        done: int,
        total: int | None = None,
        *,
        stage: str = "train",
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Report progress; calls within two seconds of another cost nothing.

        Args:
            done: Steps done.
            total: Steps in all; by default `max_steps`.
            stage: What is being done.
            figures: Further numbers to show, such as losses.
        """
        now, total = time.time(), total or self.max_steps
        is_early = now - self._reported < PROGRESS_SECONDS and stage == self._stage
        if is_early and done != total:
            return
        self._reported, self._stage = now, stage
        self.count_time(stage)
        known = {k: float(v) for k, v in (figures or {}).items() if np.isfinite(v)}
        if self.curve_points:
            last = self.curve_points[-1]
            score = (last["score"] or last["return"])["mean"]
            known |= {} if score is None else {"score": score}
        told = {"stage": stage, "done": done, "total": total, "figures": known}
        self._files.write("progress", {**told, "time": now})

    def count_time(self, stage: str) -> None:
        """Count the time since the last call as spent on "train" or "evaluate"."""
        now = time.perf_counter(), time.process_time()
        for kind, end, start in zip(("", "_cpu"), now, self._counted, strict=True):
            name = f"{stage}{kind}_seconds"
            self.seconds[name] = round(self.seconds.get(name, 0.0) + end - start, 3)
        self._counted = now
        self._files.write("clock", self.seconds)

    def curve_due(self, step: int) -> bool:
        """Return whether the learning curve wants a point after this gradient step."""
        return bool(self.num_steps) and (
            step % self.curve_interval == 0 or step == self.num_steps
        )

    @property
    def curve_interval(self) -> int:
        """Gradient steps between two points of the learning curve."""
        points = self._cell.evaluation.curve_points
        return -(-(self.num_steps or 1) // points)  # the last may be shorter

    def curve(self, step: int, policy: Any) -> None:
        """Evaluate a policy for the learning curve, once for every step.

        Args:
            step: Gradient steps done.
            policy: Anything with Stable-Baselines3's `predict`, or an algorithm of
                d3rlpy.

        Raises:
            ConfigError: Its actions are not in the action space.
        """
        self.forget_curve(step - 1)
        self.count_time("train")
        count = self._cell.evaluation.curve_episodes
        found = evaluation_json(self.evaluate(policy, seed=CURVE_SEED, episodes=count))
        self.count_time("evaluate")
        episodes = found["episodes"]
        scores = [e["score"] for e in episodes if e["score"] is not None]
        self.curve_points.append(
            {
                "step": step,
                **{k: found["summary"][k] for k in ("score", "return", "success_rate")},
                "values": scores or [e["return"] for e in episodes],
            }
        )
        self._files.write("curve", self.curve_points)

    def evaluate(self, policy: Any, *, seed: int, episodes: int) -> Evaluation:
        """Evaluate a policy, and check its actions.

        As in Stable-Baselines3's `evaluate_policy`, agents act without their
        exploration noise (`deterministic=True`). Policies whose state has a random
        stream for every episode, such as planners, draw from it instead.

        Raises:
            ConfigError: Its actions are not in the action space.
            EnvContractError: A return is not finite: no table could show it.
        """
        env = self.make_env()
        env.close()
        evaluation = evaluate(
            CheckedPolicy(as_policy(policy), env.action_space, self._cell.method),
            self.make_env,
            episodes=episodes,
            seed=seed,
            num_envs=self._cell.evaluation.num_envs,
            deterministic=not has_rows(policy),
            progress=False,
        )
        for record in evaluation.episodes:
            if not math.isfinite(record.episode_return):
                raise EnvContractError(
                    f"The return of the episode with seed {record.seed} in "
                    f"{env_name(env)} is {record.episode_return}: nothing can be "
                    f"compared. Correct the environment's rewards."
                )
        return evaluation

    def forget_curve(self, step: int) -> None:
        """Drop the points after a gradient step, from which training resumes."""
        self.curve_points = [p for p in self.curve_points if p["step"] <= step]

    def finished(self, step: int) -> bool:
        """Return whether the method has taken enough gradient steps.

        That is the budget, and beyond it while the learning curve rises: while the
        mean of its last three evaluations is above that of the three before by more
        than twice the standard error of the difference (`rise_of`). A curve that is too
        short to tell does not rise.

        Raises:
            ConfigError: There is no budget.
        """
        if self.num_steps is None:
            raise ConfigError(
                f"How many gradient steps is {self._cell.method!r} to take? Set "
                f"num_steps in the suite, pass --budget, or give register_method a "
                f"num_steps."
            )
        if step < self.num_steps or step >= (self.max_steps or 0):
            return step >= self.num_steps
        found = rise_of(self.curve_points)
        return found is None or found.kind != "rising"


class Rise(NamedTuple):
    """How much a learning curve rose at the end.

    Attributes:
        mean: The rise in units of the score.
        error: Its standard error.
    """

    mean: float
    error: float

    @property
    def kind(self) -> Literal["rising", "flat", "falling"]:
        """Whether the rise exceeds twice its standard error, and its sign."""
        if abs(self.mean) <= 2 * self.error:
            return "flat"
        return "rising" if self.mean > 0 else "falling"


def rise_of(curve: Sequence[Mapping[str, Any]]) -> Rise | None:
    """Return how much a learning curve rose at the end.

    The rise is the mean score of the last three evaluations minus that of the three
    before. All evaluations have the same episodes, so the error is that of the
    episodes' own rises: what makes one episode harder than another cancels out. The
    error does not cover how checkpoints differ among themselves. A curve that goes up
    and down is therefore called rising more often than by chance, and its training
    continues rather than ends too early.

    Args:
        curve: Evaluations during training.

    Returns:
        None where the curve is shorter, or did not keep its episodes.
    """
    values = [point.get("values") or () for point in curve[-2 * POINTS :]]
    count = min(map(len, values), default=0)
    if len(values) < 2 * POINTS or count < 2 or any(len(v) != count for v in values):
        return None
    scores = np.asarray(values, float)
    rises = scores[POINTS:].mean(axis=0) - scores[:POINTS].mean(axis=0)
    error = float(rises.std(ddof=1)) / math.sqrt(count)
    return Rise(mean=float(rises.mean()), error=error)


def flat_observation(observation: Any) -> np.ndarray:
    """Return float32 rows: of goal dictionaries, the observation, then the goal.

    Raises:
        ConfigError: Other dictionaries.
    """
    if isinstance(observation, dict):
        if not {"observation", "desired_goal"} <= observation.keys():
            raise ConfigError(
                f"This method reads flat observations and goal dictionaries, not "
                f"dictionaries with {sorted(map(str, observation))}. Wrap the "
                f"environment in gymnasium.wrappers.FlattenObservation."
            )
        parts = [observation["observation"], observation["desired_goal"]]
        return np.concatenate([np.asarray(p, np.float32) for p in parts], axis=-1)
    return np.asarray(observation, dtype=np.float32)


class FlatPolicy:
    """An algorithm of d3rlpy by Stable-Baselines3's contract.

    Args:
        algorithm: Its `predict` maps rows `[n, size]` as `flat_observation` returns
            them to `[n, actions]`.
    """

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002 (it decides that itself)
    ) -> tuple[np.ndarray, Any]:
        """Return actions, and the state as it was given."""
        rows = flat_observation(observation)
        actions = self.act(np.atleast_2d(rows))
        return (actions[0] if rows.ndim == 1 else actions), state

    def act(self, rows: np.ndarray) -> np.ndarray:
        """Return actions `[n, actions]` for rows `[n, size]`."""
        return np.asarray(self.algorithm.predict(rows))


def as_policy(made: Any) -> Any:
    """Return what a method made as a policy with Stable-Baselines3's `predict`.

    Raises:
        ConfigError: It has no `predict`, or one with other arguments.
    """
    predict = getattr(made, "predict", None)
    if not callable(predict):
        raise ConfigError(
            f"A method has to return an object with predict(observation, state, "
            f"episode_start, deterministic); {type(made).__name__} has no predict."
        )
    if type(made).__module__.startswith("d3rlpy."):
        return FlatPolicy(made)
    parameters = inspect.signature(predict).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needed = {"state", "episode_start", "deterministic"}
    if not takes_any and not needed <= parameters.keys():
        raise ConfigError(
            f"predict of {type(made).__name__} takes ({', '.join(parameters)}); "
            f"Stable-Baselines3's contract is predict(observation, state=None, "
            f"episode_start=None, deterministic=False) -> (action, state)."
        )
    return made


class CheckedPolicy:
    """A policy of a method, whose actions have to lie in one environment's `space`."""

    def __init__(self, policy: Any, space: Any, name: str) -> None:
        self._policy, self._space, self._name = policy, space, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._policy, attribute)

    @property
    def described_as(self) -> Any:
        """The policy, to whose class results belong."""
        return self._policy

    def for_env(self, env: Any) -> CheckedPolicy:
        """Return the policy adapted to an environment, also checked."""
        policy = fitted(self._policy, env)
        return CheckedPolicy(policy, self._space, self._name)

    def predict(self, observation: Any, **rest: Any) -> tuple[np.ndarray, Any]:
        """Return the policy's actions.

        Raises:
            ConfigError: They are of another shape, not finite, or out of bounds.
            EnvContractError: It returned anything but actions and a state.
        """
        given, state = action_and_state(self._policy.predict(observation, **rest))
        actions, space = np.asarray(given), self._space
        if actions.ndim == 0 or actions.shape[1:] != space.shape:
            raise ConfigError(
                f"The method {self._name!r} returned actions of shape {actions.shape}; "
                f"expected [environments, {', '.join(map(str, space.shape))}]."
            )
        if not isinstance(space, spaces.Box):
            return given, state
        if np.isnan(actions).any():
            raise ConfigError(
                f"The method {self._name!r} returned actions that are not numbers "
                f"(NaN). Look for divisions by zero, or for a training that diverged."
            )
        beyond = outside(actions, space)
        if not beyond.any():
            return given, state
        row = int(beyond.argmax())
        raise ConfigError(
            f"The method {self._name!r} returned an action outside of the action "
            f"space: {shown(actions[row].tolist())}, expected low "
            f"{shown(space.low.tolist())} to high {shown(space.high.tolist())}. Clip "
            f"or rescale it."
        )
