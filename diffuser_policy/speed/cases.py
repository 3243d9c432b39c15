"""Cases: what is measured of a planner.

| group | is |
|---|---|
| paper's setting | 256 DDPM steps, no stride, one candidate, plain eager network |
| envs together | the planner as saved, for 1 to 4,096 environments in one call |
| sampler | the reverse processes and their numbers of steps |
| closed loop | a plan in every env step, from noise or from what is left of the last |
| guide | without and with one, at each placement |
| network | one call of the network, run in each way |
| library | sampling alone, by this package and by others |
| horizon, candidates, envs | sampling alone, one size varied |

Every call plans anew from observations of the environment. The simulation runs
beforehand and is part of no time. Results are copied to the CPU, which waits until a
GPU has computed them.

PyTorch counts the floating point operations of the networks (`network_flops`). No
implementation of the same network is faster than these operations over what the cores
deliver, the floor; how far a measurement is above its floor is what an implementation
can still gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, get_args

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffuser_policy.build import seeded
from diffuser_policy.choices import Acceleration, Placement, SamplerName
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import DDPMSampler, Sampler
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.envs import make_env, reset_env, step_env
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.builtin import ActionEffort, KeepOut, Smoothness
from diffuser_policy.guides.guide import Guide
from diffuser_policy.networks.mlp import ResidualMLP
from diffuser_policy.networks.objects import ObjectTransformer
from diffuser_policy.networks.unet import TemporalUNet
from diffuser_policy.observations import batched
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.speed.libraries import by_library
from diffuser_policy.words import counted

PAPER_STEPS = 256  # Janner et al. 2022, Appendix C; also their release for Maze2D
PAPER_NETWORK: dict[str, Any] = {"dim": 32, "multipliers": (1, 4, 8)}
ENVS, QUICK_ENVS = (1, 8, 64, 512, 4096), (1, 4)
MANY = 512  # environments that take seconds: one call in a round is enough
SAMPLERS: tuple[tuple[SamplerName, int | None], ...] = (
    *(("ddim", steps) for steps in (1, 2, 3, 5, 10)),
    *(("dpm", steps) for steps in (2, 3, 5)),
    ("ddpm", None),
)
SINGLES = 8  # plans of different lengths, one by one
WIDTHS = (1, 2, 4, 8, 16, 32)
PAPER, TOGETHER, LOOP = "paper's setting", "envs together", "closed loop"
SAMPLER, GUIDE, NETWORK, LIBRARY = "sampler", "guide", "network", "library"
SCALINGS = ("horizon", "candidates", "envs")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to time."""

    group: str  # table that it belongs to
    name: str  # row of that table
    run: Callable[[], int]  # returns how many plans it made; every call is the same
    flops: int | None = None  # floating point operations of its networks, if counted
    batch: int = 1  # environments that share a planning call
    share: float = 1.0  # of the work that `run` does; the rest takes as long again
    once: bool = False  # too long to be repeated, or even warmed up


@dataclass(frozen=True)
class Subject:
    """What is measured, and where."""

    policy: DiffuserPolicy  # as saved, or with options; it reads the environment
    env_id: str  # where its observations come from
    seed: int = 0  # of the first environment; the others follow
    quick: bool = False  # few sizes and few repetitions, to try things out
    compiled: bool = False  # also `torch.compile`, which takes minutes to start

    @cached_property
    def observations(self) -> list[Any]:
        """The first observation of as many episodes as the largest batch has."""
        with closing(make_env(self.env_id)) as env:
            count = max(QUICK_ENVS if self.quick else ENVS)
            seeds = range(self.seed, self.seed + count)
            return [reset_env(env, seed=seed)[0] for seed in seeds]

    def singly(
        self,
        policy: DiffuserPolicy,
        *,
        group: str,
        name: str,
        observations: Sequence[Any] | None = None,
    ) -> Case:
        """Return one planning call for each of a few observations in turn."""
        if observations is None:
            observations = self.observations[: 1 if self.quick else SINGLES]
        calls = [
            (observation, policy.initial_state(1, streams=np.array([stream])))
            for stream, observation in enumerate(observations)
        ]
        return Case(
            group=group,
            name=name,
            run=_calls(policy, calls, len(calls)),
            flops=plan_flops(policy, observations),
        )


def paper_cases(subject: Subject) -> Iterator[Case]:
    """Yield the paper's setting, with this planner's network and with theirs.

    Latency does not depend on the weights, so theirs are random. The paper's horizon is
    fixed; the last case has that of the plans as they are made, if it is shorter.
    """
    policy, horizon = subject.policy, subject.policy.config.window.horizon
    steps = 4 if subject.quick else PAPER_STEPS
    layout, denoiser = policy.planner.layout, policy.networks.denoiser
    ours = denoiser.network, denoiser.residual, layout.transition_dim
    columns = layout.observation_dim + len(policy.spaces.action_low)
    device = policy.planner.normalizer.shift.device
    with seeded(0):
        unet = TemporalUNet(columns, **PAPER_NETWORK)
    theirs = unet.to(device), False, columns
    settings = [("this", ours, horizon), ("their", theirs, horizon)]
    lengths = _planning_steps(policy, subject.observations)
    one_length = isinstance(denoiser.network, ObjectTransformer | ResidualMLP)
    planned = int((lengths.mean() - 1) * policy.planner.stride)
    rounded = policy.planner.horizons.round_up
    if not one_length and rounded(planned) < rounded(horizon):
        settings.append(("this", ours, planned))
    for owner, (network, is_residual, columns), env_steps in settings:
        denoiser = Denoiser(
            network.eval().requires_grad_(False),
            NoiseSchedule(PAPER_STEPS),
            residual=is_residual,
            acceleration="off",
        )
        multiple = denoiser.horizon_multiple
        length = -(-env_steps // multiple) * multiple
        if one_length and owner == "this":
            length = policy.config.window.num_planning_steps
        yield Case(
            group=PAPER,
            name=f"{owner} network, {counted(env_steps, 'step')}",
            run=_sampling(DDPMSampler(denoiser, steps), columns, length),
            flops=PAPER_STEPS * network_flops(denoiser, columns, length),
            share=steps / PAPER_STEPS,
            once=not subject.quick,
        )


def together_cases(subject: Subject) -> Iterator[Case]:
    """Yield one planning call for several environments, and one by one."""
    policy, observations = subject.policy, subject.observations
    sizes = QUICK_ENVS if subject.quick else ENVS
    few = observations[:64]
    yield subject.singly(policy, group=TOGETHER, name="1", observations=few)
    for size in sizes[1:]:
        state = policy.initial_state(size, streams=np.arange(size))
        yield Case(
            group=TOGETHER,
            name=f"{size}",
            run=_calls(policy, [(batched(observations[:size]), state)], size),
            flops=plan_flops(policy, observations[:size]),
            batch=size,
            once=size >= MANY,
        )


def sampler_cases(subject: Subject) -> Iterator[Case]:
    """Yield the reverse processes with their numbers of steps, unguided.

    Guided plans take more steps than the fewest, and some placements need more.
    """
    available = subject.policy.planner.sampler.denoiser.schedule.num_denoising_steps
    for sampler, steps in SAMPLERS[:: 4 if subject.quick else 1]:
        if steps is not None and steps > available:
            continue
        policy = subject.policy.with_settings(
            sampler=sampler,
            num_sampling_steps=steps,
            **({} if subject.policy.guide is None else {"guide_scale": 0.0}),
        )
        name = f"{sampler} {steps or available}"
        yield subject.singly(policy, group=SAMPLER, name=name)


def loop_cases(subject: Subject) -> Iterator[Case]:
    """Yield replanning in every env step, cold and from what is left of the plan.

    Nothing is left of a plan of one planning step. An episode of one env step has no
    replanning to time, and a planner whose plans have one length does not replan on the
    way to a goal.
    """
    policy, settings = subject.policy, {}
    if policy.config.planner.horizon == "fixed" and policy.spaces.has_goal:
        settings = {"horizon": "shrinking"}  # a fixed one never arrives
    base = _if_possible(policy.with_settings, replan_interval=1, **settings)
    if base is None:
        return
    saved = base.config.planner.warm_start
    yield from _loop(base.with_settings(warm_start=None), subject, name="cold")
    if base.planner.horizons.max_planning_steps == 1:
        return
    if saved is not None:
        yield from _loop(base, subject, name="warm, as saved")
    for level in (0.5,) if subject.quick else (0.25, 0.5):
        if level == saved:
            continue
        warm = _if_possible(base.with_settings, warm_start=level, warm_start_steps=None)
        if warm is not None:
            yield from _loop(warm, subject, name=f"warm from {level:.0%} noise")


def guide_cases(subject: Subject) -> Iterator[Case]:
    """Yield planning without a guide, and with one at each placement.

    Without a guide of its own, a policy gets a disc in the middle if there are
    positions, else smoothness of all observations; for plans of a single action, it
    gets the effort of that action.
    """
    policy = subject.policy
    position = policy.planner.layout.aliases.get("position", ())
    disc = KeepOut(center=(0.0,) * len(position), radius=0.5) if position else None
    usual: Guide = disc or Smoothness(columns="observation")
    if policy.planner.horizons.max_planning_steps == 1:
        usual = ActionEffort()
    guide = policy.guide or usual
    # A planner may be saved with a guide that only ranks its candidates.
    scale = policy.config.planner.guide_scale or 1.0
    steered = partial(policy.with_guide, guide, guide_scale=scale)
    clean = steered(guide_placement="clean")  # goes with any steps
    steps = clean.planner.sampler.num_steps
    unguided = policy.with_guide(guide, guide_scale=0.0, num_sampling_steps=steps)
    yield subject.singly(unguided, group=GUIDE, name=f"none, {counted(steps, 'step')}")
    for placement in get_args(Placement)[: 1 if subject.quick else None]:
        guided = _if_possible(steered, guide_placement=placement)
        name = f"{guide.name}, {placement}, {counted(steps, 'step')}"
        if guided is not None:
            yield subject.singly(guided, group=GUIDE, name=name)


def network_cases(subject: Subject) -> Iterator[Case]:
    """Yield one call of the network, run in every way that it can be."""
    planner = subject.policy.planner
    denoiser = planner.sampler.denoiser
    device = planner.normalizer.shift.device
    length = planner.horizons.round_up(planner.horizons.max_planning_steps / 2)
    ways: list[Acceleration] = ["off"]
    if not denoiser.residual:
        ways += ["fused"]
        ways += ["compile"] if subject.compiled else []
        ways += ["cuda-graphs"] if device.type == "cuda" else []
    size = (planner.num_candidates, length, planner.layout.transition_dim)
    source = torch.Generator().manual_seed(0)
    noisy = torch.randn(size, generator=source, dtype=torch.float32).to(device)
    flops = planner.num_candidates * network_flops(denoiser, size[2], length)
    for way in ways:
        run_by = denoiser.accelerated(way)

        @torch.inference_mode()
        def call(run_by: Denoiser = run_by) -> int:
            run_by(noisy, 0).cpu()
            return 1

        yield Case(group=NETWORK, name=way, run=call, flops=flops)


def library_cases(subject: Subject) -> Iterator[Case]:
    """Yield the sampling of a plan of half the longest length, by every library."""
    planner = subject.policy.planner
    columns, sampler = planner.layout.transition_dim, planner.sampler
    length = planner.horizons.round_up(planner.horizons.max_planning_steps / 2)
    flops = sampler.num_steps * network_flops(sampler.denoiser, columns, length)
    for name, other in by_library(sampler, columns, length):
        run = _sampling(other, columns, length)
        yield Case(group=LIBRARY, name=name, run=run, flops=flops)


def scaling_cases(subject: Subject) -> Iterator[Case]:
    """Yield sampling with one size varied and the others as they are."""
    planner = subject.policy.planner
    sampler = planner.sampler
    columns = planner.layout.transition_dim
    horizons = planner.horizons
    shortest, longest = horizons.min_planning_steps, horizons.max_planning_steps
    count = 2 if subject.quick else 6
    lengths = {horizons.round_up(x) for x in np.geomspace(shortest, longest, count)}
    usual = (horizons.round_up(longest / 2), planner.num_candidates, 1)
    varied = (sorted(lengths), WIDTHS[:count], WIDTHS[:count])
    for place, (group, values) in enumerate(zip(SCALINGS, varied, strict=True)):
        for value in values:
            length, candidates, envs = (
                value if place == number else size for number, size in enumerate(usual)
            )
            flops = sampler.num_steps * network_flops(sampler.denoiser, columns, length)
            yield Case(
                group=group,
                name=str(value * planner.stride if group == "horizon" else value),
                run=_sampling(sampler, columns, length, candidates, envs),
                flops=envs * candidates * flops,
                batch=envs,
            )


def plan_flops(policy: DiffuserPolicy, observations: Sequence[Any]) -> int:
    """Return the fewest operations of the denoiser that plan for each observation."""
    planner = policy.planner
    aspiration = planner.ranking.good_enough(planner.stride)
    satisfied = planner.satisficing and aspiration is not None
    candidates = 1 if satisfied else planner.num_candidates
    columns = planner.layout.transition_dim
    count = partial(network_flops, planner.sampler.denoiser, columns)
    calls = planner.sampler.num_steps * candidates
    return calls * sum(map(count, _planning_steps(policy, observations).tolist()))


def _if_possible(
    change: Callable[..., DiffuserPolicy], *arguments: Any, **settings: Any
) -> DiffuserPolicy | None:
    """Return a changed policy; none where it cannot have these settings."""
    try:
        return change(*arguments, **settings)
    except ConfigError:
        return None


def _planning_steps(policy: DiffuserPolicy, observations: Sequence[Any]) -> np.ndarray:
    planner = policy.planner
    rows, goals = policy.read(batched(observations))
    if goals is not None and planner.routes is not None:
        goals = planner.routes.aims(rows, goals)  # where the next plans end
    return planner.horizons.planning_steps(rows, goals)


def _loop(policy: DiffuserPolicy, subject: Subject, *, name: str) -> Iterator[Case]:
    """Yield the calls of an episode in which every env step plans anew, if any does.

    The episode is run beforehand: `predict` depends on its arguments alone, so the same
    calls can be made again without the simulation.
    """
    calls: list[tuple[Any, PolicyState]] = []
    with closing(make_env(subject.env_id)) as env:
        observation, _ = reset_env(env, seed=subject.seed)
        action, state = policy.predict(observation)
        first = int(state.num_plans[0])
        for _ in range(3 if subject.quick else 20):
            observation, _, terminated, truncated, _ = step_env(env, action)
            if terminated or truncated:
                break
            calls.append((observation, state))
            action, state = policy.predict(observation, state)
    num_plans = int(state.num_plans[0]) - first
    if num_plans:
        yield Case(group=LOOP, name=name, run=_calls(policy, calls, num_plans))


def _calls(
    policy: DiffuserPolicy, calls: Sequence[tuple[Any, PolicyState]], num_plans: int
) -> Callable[[], int]:
    """Return calls of `predict` with these arguments, one after the other."""

    def run() -> int:
        for arguments in calls:
            policy.predict(*arguments)
        return num_plans

    return run


def _sampling(
    sampler: Sampler, columns: int, length: int, candidates: int = 1, envs: int = 1
) -> Callable[[], int]:
    """Return the reverse process alone, for plans pinned at their first step."""
    device = next(sampler.denoiser.parameters()).device
    mask = torch.zeros(1, length, columns, dtype=torch.bool, device=device)
    mask[:, 0] = True
    values = torch.zeros(envs, length, columns, dtype=torch.float32, device=device)
    given = Inpainting(mask, values)

    def sample() -> int:
        generators = [torch.Generator().manual_seed(row) for row in range(envs)]
        made = sampler.sample(given, generators, num_candidates=candidates)
        made.trajectories.cpu()
        return envs

    return sample


@cache
def network_flops(denoiser: Denoiser, columns: int, length: int) -> int:
    """Return the floating point operations of one call, for one trajectory."""
    device = next(denoiser.parameters()).device
    noisy = torch.zeros(1, length, columns, dtype=torch.float32, device=device)
    plain = denoiser.accelerated("off")
    return flops_of(lambda: plain(noisy, 0))


def flops_of(work: Callable[[], object]) -> int:
    """Return the floating point operations of some work, as PyTorch counts them."""
    counter = FlopCounterMode(display=False)
    # Fused attention is not counted on every device, its matrix products are.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return int(counter.get_total_flops())


CASES = (
    paper_cases,
    together_cases,
    sampler_cases,
    loop_cases,
    guide_cases,
    network_cases,
    library_cases,
    scaling_cases,
)


def all_cases(subject: Subject) -> Iterator[Case]:
    """Yield every case, baseline first."""
    for group in CASES:
        yield from group(subject)
