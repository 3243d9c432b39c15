"""DiffuserPolicy: a trained planner as a policy for any Gymnasium loop.

    policy = DiffuserPolicy.from_pretrained("multi2d-large")
    action, state = policy.predict(observation)

The front door: it loads and saves planners, and hands out copies with other settings.
How it decides is in `diffuser_policy.receding` and `diffuser_policy.planner`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuser_policy.acceleration import Acceleration
from diffuser_policy.build import PlannerNetworks, build_planner
from diffuser_policy.build_execution import build_executor, build_replanning
from diffuser_policy.checkpoint import read_planner, write_planner
from diffuser_policy.conditions import Conditions
from diffuser_policy.config import (
    ExecutionConfig,
    PlannerConfig,
    from_json,
    to_json,
)
from diffuser_policy.errors import ConfigError, ObservationError, UnknownNameError
from diffuser_policy.guides.guide import Guide, GuideFunction, as_guide, described
from diffuser_policy.plan import Plan
from diffuser_policy.policy_config import PolicyConfig, config_featurizer
from diffuser_policy.policy_state import PolicyState
from diffuser_policy.ranking import has_feasibility
from diffuser_policy.receding import RecedingHorizonPolicy


class DiffuserPolicy(RecedingHorizonPolicy):
    """Plans by denoising a whole trajectory, and follows the plan."""

    def __init__(
        self, config: PolicyConfig, networks: PlannerNetworks, *, seed: int = 0
    ) -> None:
        """Build the policy that the settings describe.

        Args:
            config: Settings of a planner.
            networks: Its weights.
            seed: Noise of deterministic plans, and first of the random streams.

        Raises:
            ConfigError: Settings that contradict each other or the weights.
            FeaturizerError: Its featurizer is not registered here, or another version.
        """
        featurizer = config_featurizer(config)
        super().__init__(
            build_planner(config, networks, featurizer),
            build_executor(config, featurizer),
            spaces=config.spaces,
            replanning=build_replanning(config.execution),
            featurizer=featurizer,
            seed=seed,
        )
        self.config, self.networks = config, networks

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, seed: int = 0, **settings: Any
    ) -> DiffuserPolicy:
        """Load a planner by path, by the name of a shipped one, or by hub id.

        Args:
            source: For example "multi2d-large", "runs/mine", or "someone/theirs".
            seed: As in the constructor.
            settings: Planning and execution settings to change, as in `with_settings`.

        Raises:
            CheckpointNotFoundError: Nothing of that name.
            CheckpointError: Truncated, foreign, or of another schema.
            GuideError: It was saved with a guide of a package that is not installed.
            FeaturizerError: It plans in the columns of such a package.
            UnknownNameError: A setting that does not exist.
        """
        config, networks = read_planner(source)
        policy = cls(config, networks, seed=seed)
        return policy.with_settings(**settings) if settings else policy

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a model card.

        Args:
            folder: Created if needed; each file is replaced atomically.

        Raises:
            StorageError: No space or no permission; complete files stay as they were.
        """
        write_planner(Path(folder), self.config, self.networks)

    def with_settings(self, **settings: Any) -> DiffuserPolicy:
        """Return a policy that shares the weights and plans or executes differently.

        Args:
            settings: Fields of `PlannerConfig` and `ExecutionConfig`, for example
                `num_sampling_steps=3, horizon="fixed", replan_interval=10`.

        Raises:
            UnknownNameError: A setting that neither has; the nearest are named.
            ConfigError: Settings that contradict each other.
        """
        return self._changed(settings)

    def with_guide(
        self, guide: Guide | GuideFunction | None, **settings: Any
    ) -> DiffuserPolicy:
        """Return a policy that shares the weights and is steered by a guide.

        Args:
            guide: A guide, a sum of guides, a plain function of a `Trajectory`, or
                none to plan without. It replaces the guide that there was. Guided
                plans take at least `min_guided_steps` denoising steps.
            settings: As in `with_settings`, for example `guide_scale=2.0,
                guide_placement="mean", ranking="guide"`.

        Raises:
            GuideError: Something that is no guide.
            UnknownNameError: A setting that does not exist.
            ConfigError: Settings that contradict each other.
        """
        chosen = None if guide is None else as_guide(guide)
        if chosen is None and self.config.planner.ranking == "guide":
            settings = {"ranking": self._usual_ranking(), **settings}
        return self._changed(settings, guide=chosen)

    @property
    def guide(self) -> Guide | None:
        """What plans are steered by."""
        return self.config.guide

    def __repr__(self) -> str:
        """Name what plans depend on."""
        plans, guide = self.config.planner, self.config.guide
        steps = self.planner.sampler.num_steps
        return (
            f"DiffuserPolicy({plans.sampler}, {steps} denoising steps, "
            f"{plans.num_candidates} candidates ranked by {plans.ranking}, "
            f"guide {'none' if guide is None else described(guide)}, "
            f"executor {self.config.execution.executor})"
        )

    def accelerated(self, acceleration: Acceleration) -> DiffuserPolicy:
        """Return a policy that shares the weights and runs the denoiser another way.

        Plans stay the same up to rounding. What cannot be had on this machine is named
        in an `AccelerationWarning`, and planning goes on without it.

        Args:
            acceleration: "auto", "off", "fused", "compile" or "cuda-graphs", see
                `diffuser_policy.acceleration`.

        Raises:
            UnknownNameError: An acceleration that does not exist.
        """
        shared = self.networks
        networks = PlannerNetworks(
            shared.denoiser.accelerated(acceleration),
            shared.normalizer,
            shared.time_to_goal,
            shared.value,
            shared.classifier,
        )
        return DiffuserPolicy(self.config, networks, seed=self.seed)

    def to(self, device: str | torch.device) -> DiffuserPolicy:
        """Move the networks, in place, and return the policy.

        Args:
            device: Where to plan; observations and actions stay NumPy arrays.
        """
        self.networks.to(device)
        return self

    def plan(
        self,
        observation: Any,
        *,
        state: PolicyState | None = None,
        conditions: Conditions | None = None,
        keep_chain: bool = False,
    ) -> Plan:
        """Return the plan for an observation, to look at or to draw.

        Args:
            observation: Single or batched.
            state: Of `initial_state`: the plan is the one that `predict` makes with
                it. Not given: the plan of `predict(…, deterministic=True)`.
            conditions: Pinned besides start and goal.
            keep_chain: Keep the trajectories at every denoising step.

        Raises:
            ObservationError: An observation that cannot be planned from, or a state of
                another policy or with plans under way.
        """
        rows, goals = self.read(observation)
        if state is None:
            generators = [torch.Generator().manual_seed(self.seed) for _ in rows]
        else:
            state = self._incoming(state, len(rows))
            if state.lengths.any():
                raise ObservationError(
                    "state has plans under way, and plan() makes a first one. Pass a "
                    "state of initial_state(), or none."
                )
            index = np.arange(len(rows))
            generators = self._generators(state, rows, index, deterministic=False)
        return self.planner.plan(
            rows,
            goals,
            generators,
            remaining=np.full(len(rows), -1),
            conditions=conditions,
            keep_chain=keep_chain,
            step_noise=state is not None,
        )

    def _usual_ranking(self) -> str:
        """Return how to choose among candidates without a guide."""
        if has_feasibility(self.featurizer):
            return "feasibility"
        return "smoothness" if self.networks.time_to_goal is None else "time_to_goal"

    def _changed(self, settings: Mapping[str, Any], **parts: Any) -> DiffuserPolicy:
        """Return a policy with other settings and other parts of the config."""
        configs = {
            "planner": to_json(self.config.planner),
            "execution": to_json(self.config.execution),
        }
        for name, value in settings.items():
            for known in configs.values():
                if name in known:
                    known[name] = value
                    break
            else:
                if name == "guide":
                    raise ConfigError("Guides are changed with policy.with_guide(…).")
                every = [name for known in configs.values() for name in known]
                raise UnknownNameError("setting", name, every)
        config = dataclasses.replace(
            self.config,
            planner=from_json(PlannerConfig, configs["planner"]),
            execution=from_json(ExecutionConfig, configs["execution"]),
            **parts,
        )
        return DiffuserPolicy(config, self.networks, seed=self.seed)
