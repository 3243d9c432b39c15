"""Cases: what is measured of a planner.

| group | is |
|---|---|
| paper's setting | 256 DDPM steps, no stride, one candidate, plain eager network |
| envs together | the planner as saved, for 1, 8 and 64 environments in one call |
| sampler | the reverse processes and their numbers of steps |
| closed loop | a plan in every env step, from noise or from what is left of the last |
| guide | without and with one, at each placement |
| network | one call of the network, run in each way |
| horizon, candidates, envs | sampling alone, one size varied |

Every call plans anew from observations of the environment; the simulation itself is
run beforehand and not part of any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffuser_policy.choices import Acceleration, SamplerName
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import DDPMSampler, Sampler
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.envs import make_env
from diffuser_policy.evaluation.drivers import batched
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.motion import Smoothness
from diffuser_policy.guides.regions import KeepOut
from diffuser_policy.networks.unet import TemporalUNet
from diffuser_policy.policy import DiffuserPolicy, PolicyState
from diffuser_policy.speed.floor import network_flops
from diffuser_policy.speed.timing import Case

PAPER_STEPS = 256  # Janner et al. 2022, Appendix C; also their release for Maze2D
PAPER_NETWORK: dict[str, Any] = {"dim": 32, "multipliers": (1, 4, 8)}
QUICK_PAPER_STEPS = 4
ENVS, QUICK_ENVS = (1, 8, 64), (1, 4)
SAMPLERS: tuple[tuple[SamplerName, int | None], ...] = (
    ("ddim", 1),
    ("ddim", 2),
    ("ddim", 3),
    ("ddim", 5),
    ("ddim", 10),
    ("dpm", 2),
    ("dpm", 3),
    ("dpm", 5),
    ("ddpm", None),
)
SINGLES, QUICK_SINGLES = 8, 1  # plans of different lengths, one by one
LOOP_STEPS, QUICK_LOOP_STEPS = 20, 3
WARM_LEVELS, QUICK_WARM_LEVELS = (0.25, 0.5), (0.5,)
WIDTHS = (1, 2, 4, 8, 16, 32)
PAPER, TOGETHER, SAMPLER, LOOP, GUIDE, NETWORK = (
    "paper's setting",
    "envs together",
    "sampler",
    "closed loop",
    "guide",
    "network",
)
SCALINGS = ("horizon", "candidates", "envs")


@dataclass(frozen=True)
class Subject:
    """What is measured, and where.

    Attributes:
        policy: As saved, or with the options that were given.
        env_id: Where its observations come from.
        seed: Of the first environment; the others follow.
        quick: Few sizes and few repetitions, to try things out.
        compiled: Also measure `torch.compile`, which takes minutes to start.
    """

    policy: DiffuserPolicy
    env_id: str
    seed: int = 0
    quick: bool = False
    compiled: bool = False

    @property
    def sampler(self) -> Sampler:
        """The reverse process that the policy plans with."""
        return self.policy.planner.sampler


def all_cases(subject: Subject) -> list[Case]:
    """Return every case, baseline first."""
    observations = first_observations(subject)
    return [
        *paper_cases(subject, observations),
        *together_cases(subject, observations),
        *sampler_cases(subject, observations),
        *loop_cases(subject),
        *guide_cases(subject, observations),
        *network_cases(subject),
        *scaling_cases(subject),
    ]


def first_observations(subject: Subject) -> list[Any]:
    """Return the first observation of as many episodes as the largest batch has."""
    env = make_env(subject.env_id)
    try:
        subject.policy.spaces.check(env)
        count = max(QUICK_ENVS if subject.quick else ENVS)
        return [env.reset(seed=subject.seed + number)[0] for number in range(count)]
    finally:
        env.close()


def paper_cases(subject: Subject, observations: Sequence[Any]) -> Iterator[Case]:
    """Yield the paper's setting, with this planner's network and with theirs.

    Latency does not depend on the weights, so theirs are random. The paper's horizon is
    fixed; the last case has that of the plans as they are made, which is shorter.
    """
    policy, window = subject.policy, subject.policy.config.window
    steps = QUICK_PAPER_STEPS if subject.quick else PAPER_STEPS
    ours = policy.networks.denoiser.network
    theirs = TemporalUNet(
        policy.planner.layout.observation_dim + len(policy.spaces.action_low),
        **PAPER_NETWORK,
    )
    lengths = _planning_steps(policy, observations)
    planned = int((lengths.mean() - 1) * policy.planner.stride)
    for name, network, horizon in (
        (f"this network, {window.horizon} steps", ours, window.horizon),
        (f"their network, {window.horizon} steps", theirs, window.horizon),
        (f"this network, {planned} steps", ours, planned),
    ):
        denoiser = Denoiser(
            network.eval().requires_grad_(False),
            NoiseSchedule(PAPER_STEPS),
            acceleration="off",
        )
        multiple = denoiser.horizon_multiple
        case = _sampling(
            DDPMSampler(denoiser, steps), length=-(-horizon // multiple) * multiple
        )
        yield Case(
            group=PAPER,
            name=name,
            run=case.run,
            flops=case.flops and case.flops * PAPER_STEPS // steps,
            share=steps / PAPER_STEPS,
            once=not subject.quick,
        )


def together_cases(subject: Subject, observations: Sequence[Any]) -> Iterator[Case]:
    """Yield one planning call for several environments, and one by one."""
    policy = subject.policy
    sizes = QUICK_ENVS if subject.quick else ENVS
    yield _singly(policy, observations, group=TOGETHER, name="1")
    for size in sizes[1:]:
        batch = batched(observations[:size])

        def plan(batch: Any = batch, size: int = size) -> int:
            policy.predict(batch)
            return size

        flops = plan_flops(policy, observations[:size])
        yield Case(group=TOGETHER, name=f"{size}", run=plan, flops=flops, batch=size)


def sampler_cases(subject: Subject, observations: Sequence[Any]) -> Iterator[Case]:
    """Yield the reverse processes with their numbers of steps."""
    few = observations[: QUICK_SINGLES if subject.quick else SINGLES]
    available = subject.sampler.denoiser.schedule.num_denoising_steps
    for sampler, steps in SAMPLERS[:: 4 if subject.quick else 1]:
        if steps is not None and steps > available:
            continue
        policy = subject.policy.with_settings(sampler=sampler, num_sampling_steps=steps)
        name = f"{sampler} {steps or available}"
        yield _singly(policy, few, group=SAMPLER, name=name)


def loop_cases(subject: Subject) -> Iterator[Case]:
    """Yield replanning in every env step, cold and from what is left of the plan."""
    base = subject.policy
    if base.config.planner.horizon == "fixed" and base.spaces.has_goal:
        base = base.with_settings(horizon="shrinking")  # a fixed one never arrives
    base = base.with_settings(replan_interval=1)
    levels = {*(QUICK_WARM_LEVELS if subject.quick else WARM_LEVELS)}
    saved = base.config.planner.warm_start
    policies = {"cold": base.with_settings(warm_start=None)}
    if saved is not None:
        policies["warm, as saved"] = base
    for level in sorted(levels - {saved}):
        warm = base.with_settings(warm_start=level, warm_start_steps=None)
        policies[f"warm from {level:.0%} noise"] = warm
    for name, policy in policies.items():
        yield _loop(policy, subject, name=name)


def guide_cases(subject: Subject, observations: Sequence[Any]) -> Iterator[Case]:
    """Yield planning without a guide, and with one at each placement."""
    few = observations[: QUICK_SINGLES if subject.quick else SINGLES]
    policy, guide = subject.policy, subject.policy.config.guide
    guide = example_guide(policy) if guide is None else guide
    steps = policy.with_guide(guide).planner.sampler.num_steps
    unguided = policy.with_guide(guide, guide_scale=0.0, num_sampling_steps=steps)
    yield _singly(unguided, few, group=GUIDE, name=f"none, {steps} steps")
    placements: tuple[str, ...] = ("clean", "mean", "noisy")
    for placement in placements[: 1 if subject.quick else 3]:
        guided = policy.with_guide(guide, guide_placement=placement)
        name = f"{guide.name}, {placement}, {steps} steps"
        yield _singly(guided, few, group=GUIDE, name=name)


def example_guide(policy: DiffuserPolicy) -> Guide:
    """Return a disc in the middle if there are positions, else smoothness."""
    position = policy.planner.layout.aliases.get("position", ())
    if not position:
        return Smoothness()
    return KeepOut(center=(0.0,) * len(position), radius=0.5)


def network_cases(subject: Subject) -> Iterator[Case]:
    """Yield one call of the network, run in every way."""
    denoiser, planner = subject.sampler.denoiser, subject.policy.planner
    device = planner.normalizer.shift.device
    length = planner.horizons.round_up(planner.horizons.max_planning_steps / 2)
    ways: list[Acceleration] = ["off", "fused"]
    ways += ["compile"] if subject.compiled else []
    ways += ["cuda-graphs"] if device.type == "cuda" else []
    size = (planner.num_candidates, length, planner.layout.transition_dim)
    noisy = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    for way in ways:
        run_by = denoiser.accelerated(way)

        @torch.inference_mode()
        def call(run_by: Denoiser = run_by) -> int:
            run_by(noisy, 0)
            return 1

        flops = _flops(denoiser, *size[:2])
        yield Case(group=NETWORK, name=way, run=call, flops=flops)


def scaling_cases(subject: Subject) -> Iterator[Case]:
    """Yield sampling with one size varied and the others as they are."""
    planner = subject.policy.planner
    horizons = planner.horizons
    shortest, longest = horizons.min_planning_steps, horizons.max_planning_steps
    count = 2 if subject.quick else 6
    lengths = {horizons.round_up(x) for x in np.geomspace(shortest, longest, count)}
    widths = WIDTHS[:count]
    usual = {
        "length": horizons.round_up(longest / 2),
        "num_candidates": planner.num_candidates,
        "envs": 1,
    }
    values = {"length": sorted(lengths), "num_candidates": widths, "envs": widths}
    for group, (size, varied) in zip(SCALINGS, values.items(), strict=True):
        for value in varied:
            sizes = {**usual, size: value}
            unit = planner.stride if size == "length" else 1
            case = _sampling(subject.sampler, **sizes)
            yield Case(
                group=group,
                name=str(value * unit),
                run=case.run,
                flops=case.flops,
                batch=sizes["envs"],
            )


def plan_flops(policy: DiffuserPolicy, observations: Sequence[Any]) -> int | None:
    """Return the operations of the networks that plan once for each observation."""
    sampler, candidates = policy.planner.sampler, policy.planner.num_candidates
    total = 0
    for length in _planning_steps(policy, observations).tolist():
        flops = _flops(sampler.denoiser, candidates, length)
        if flops is None:
            return None
        total += sampler.num_steps * flops
    return total


def _planning_steps(policy: DiffuserPolicy, observations: Sequence[Any]) -> np.ndarray:
    rows, goals = policy.read(batched(observations))
    return policy.planner.horizons.planning_steps(rows, goals)


def _flops(denoiser: Denoiser, batch: int, length: int) -> int | None:
    network = denoiser.network
    if isinstance(network, TemporalUNet):
        return network_flops(network, batch, length)
    return None


def _singly(
    policy: DiffuserPolicy, observations: Sequence[Any], *, group: str, name: str
) -> Case:
    """Return one planning call for each observation in turn."""

    def plan() -> int:
        for observation in observations:
            policy.predict(observation)
        return len(observations)

    return Case(
        group=group, name=name, run=plan, flops=plan_flops(policy, observations)
    )


def _loop(policy: DiffuserPolicy, subject: Subject, *, name: str) -> Case:
    """Return the calls of an episode in which every env step plans anew.

    The episode is run beforehand: `predict` depends on its arguments alone, so the same
    calls can be made again without the simulation.
    """
    env = make_env(subject.env_id)
    calls: list[tuple[Any, PolicyState]] = []
    try:
        observation, _ = env.reset(seed=subject.seed)
        action, state = policy.predict(observation)
        for _ in range(QUICK_LOOP_STEPS if subject.quick else LOOP_STEPS):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
            calls.append((observation, state))
            action, state = policy.predict(observation, state)
    finally:
        env.close()
    num_plans = int(state.num_plans[0] - calls[0][1].num_plans[0])

    def replay() -> int:
        for observation, state in calls:
            policy.predict(observation, state)
        return num_plans

    return Case(group=LOOP, name=name, run=replay)


def _sampling(
    sampler: Sampler, *, length: int, num_candidates: int = 1, envs: int = 1
) -> Case:
    """Return the reverse process alone, for plans pinned at their first step."""
    network = sampler.denoiser.network
    columns = getattr(network, "transition_dim", 1)
    parameter = next(network.parameters(), torch.zeros(()))
    mask = torch.zeros(1, length, columns, dtype=torch.bool, device=parameter.device)
    mask[:, 0] = True
    given = Inpainting(mask, torch.zeros(envs, *mask.shape[1:], device=mask.device))

    def sample() -> int:
        generators = [torch.Generator().manual_seed(row) for row in range(envs)]
        sampler.sample(given, generators, num_candidates=num_candidates)
        return envs

    flops = _flops(sampler.denoiser, envs * num_candidates, length)
    return Case(
        group="",
        name="",
        run=sample,
        flops=None if flops is None else sampler.num_steps * flops,
    )
