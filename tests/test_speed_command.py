"""`diffuser-policy speed`: what is measured, printed and written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import FlattenObservation

from diffuser_policy.choices import Placement
from diffuser_policy.cli import main
from diffuser_policy.cli.options import PlanningOptions
from diffuser_policy.cli.speed import SpeedSettings, replanning
from diffuser_policy.config import PlannerConfig, WindowConfig
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import Sampler
from diffuser_policy.errors import ConfigError, SpaceMismatchError
from diffuser_policy.guides.builtin import Smoothness
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.speed import SpeedMeasurement, measure_speed
from diffuser_policy.speed.cases import (
    SCALINGS,
    Case,
    Subject,
    all_cases,
    guide_cases,
    loop_cases,
    network_cases,
    network_flops,
    paper_cases,
)
from diffuser_policy.speed.report import TITLES, facts, figure, tables, to_json
from diffuser_policy.testing import toy_config, toy_policy
from tests.point_env import POINT, PointEnv
from tests.policy_helpers import untrained_policy

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def policy(planner: str) -> DiffuserPolicy:
    return DiffuserPolicy.from_pretrained(planner)


@pytest.fixture(scope="module")
def measured(policy: DiffuserPolicy) -> SpeedMeasurement:
    return measure_speed(policy, POINT, rounds=1, quick=True)


@pytest.fixture(scope="module")
def cases(policy: DiffuserPolicy) -> list[Case]:
    return list(all_cases(Subject(policy, POINT, quick=True)))


def test_nothing_starts_warm_where_plans_are_a_single_action() -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)
    found = loop_cases(Subject(single, "Pendulum-v1", quick=True))
    assert [case.name for case in found] == ["cold"]


@pytest.mark.parametrize("placement", ["mean", "noisy"])
def test_guides_that_need_two_steps_are_measured(placement: Placement) -> None:
    """Samplers are measured unguided, down to a single step."""
    planner = PlannerConfig(
        num_sampling_steps=2, min_guided_steps=1, guide_placement=placement
    )
    guided = toy_policy(toy_config(planner=planner)).with_guide(Smoothness())
    planner = dataclasses.replace(planner, num_sampling_steps=1)
    single = toy_policy(toy_config(planner=planner))
    for policy in (guided, single):
        cases = list(all_cases(Subject(policy, POINT, quick=True)))
        assert {case.group for case in cases} == set(TITLES)
        [first, *_] = [case for case in cases if case.group == "sampler"]
        assert first.name == "ddim 1"
        first.run()
    guides = list(guide_cases(Subject(single, POINT)))  # one step goes with one of them
    assert [case.name for case in guides[1:]] == ["KeepOut, clean, 1 step"]


def test_a_guide_that_only_ranks_is_measured_as_one_that_steers() -> None:
    """`train --dataset ID --value` saves such planners."""
    ranked = toy_policy().with_guide(Smoothness(), guide_scale=0.0, ranking="guide")
    none, *guided = guide_cases(Subject(ranked, POINT, quick=True))
    assert none.name.startswith("none")
    assert [case.name for case in guided] == [
        none.name.replace("none", "Smoothness, clean")
    ]
    for case in (none, *guided):
        assert case.run() == 1


def test_planners_of_one_length_with_goals_have_no_closed_loop() -> None:
    """They would keep the goal a full horizon away."""
    window = WindowConfig(horizon=16, min_horizon=16)
    policy = toy_policy(toy_config(window=window))
    cases = list(all_cases(Subject(policy, POINT, quick=True)))
    assert {case.group for case in cases} == set(TITLES) - {"closed loop"}


class OneStep(PointEnv):
    """Every episode ends with its first env step."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, True, False, info


def test_episodes_of_one_env_step_are_measured_without_a_loop(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.point_env.PointEnv", OneStep)
    measured = measure_speed(policy, POINT, rounds=1, quick=True)
    groups = {timing.case.group for timing in measured.timings}
    assert groups == set(TITLES) - {"closed loop"}
    assert facts(on_machine(measured)).row_count == 8
    assert {table.title for table in tables(measured)} == {TITLES[g] for g in groups}


def test_no_rounds_are_refused_before_anything_is_prepared(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "observations", property(lambda _: 1 / 0))
    with pytest.raises(ConfigError, match="rounds must be at least 1, got 0"):
        measure_speed(policy, POINT, rounds=0, quick=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"rounds": 1.5}, "rounds must be a whole number"),
    ],
)
def test_numbers_of_another_kind_are_refused(
    policy: DiffuserPolicy, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        measure_speed(policy, POINT, quick=True, **given)


def test_another_interval_than_that_of_the_loop_is_refused(
    planner: str, capsys: Capture
) -> None:
    assert main(["speed", planner, "--replan-interval", "4", "--quick"]) == 2
    assert "--replan-interval has no effect in `speed`" in capsys.readouterr().err


def test_a_warm_start_that_is_asked_for_is_measured(planner: str) -> None:
    options = PlanningOptions(settings={"warm_start": 0.4, "horizon": "shrinking"})
    asked = replanning(SpeedSettings(planner=planner, env=POINT, planning=options))
    policy, env_id = asked.load()
    names = [case.name for case in loop_cases(Subject(policy, env_id, quick=True))]
    assert "warm, as saved" in names


def test_every_table_has_its_cases(measured: SpeedMeasurement) -> None:
    assert {timing.case.group for timing in measured.timings} == set(TITLES)
    assert all(timing.plan_ms > 0 for timing in measured.timings)


def test_nothing_is_faster_than_the_floor(measured: SpeedMeasurement) -> None:
    for timing in measured.timings:
        floor = timing.floor_ms(measured.peak)
        assert floor is None or timing.call_ms > floor, timing.case.name


def test_cases_say_how_many_plans_they_make(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rows that the sampler is asked for."""
    rows: list[int] = []
    sample = Sampler.sample

    def counted(sampler: Sampler, given: Any, *rest: Any, **named: Any) -> Any:
        rows.append(len(given.values))
        return sample(sampler, given, *rest, **named)

    monkeypatch.setattr(Sampler, "sample", counted)
    for case in cases:
        rows.clear()
        plans = case.run()
        if case.group != "network":
            assert sum(rows) == plans, case.name
            assert len(rows) * case.batch == plans or case.batch > 1, case.name


def test_a_case_makes_the_same_plans_whenever_it_runs(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else rows would differ by luck: some plans satisfice at the first candidate."""
    made: list[torch.Tensor] = []
    sample = Sampler.sample

    def kept(sampler: Sampler, *given: Any, **named: Any) -> Any:
        samples = sample(sampler, *given, **named)
        made.append(samples.trajectories)
        return samples

    monkeypatch.setattr(Sampler, "sample", kept)
    for case in cases:
        runs = []
        for _ in range(2):
            made.clear()
            case.run()
            runs.append(list(made))
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second), case.name


def test_a_case_ends_when_its_results_are_on_the_cpu(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes on while Python goes on; a copy waits for it."""
    log: list[str] = []
    forward, copy = Denoiser.forward, torch.Tensor.cpu

    def computed(denoiser: Denoiser, *given: Any) -> Any:
        log.append("computed")
        return forward(denoiser, *given)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        log.append("copied")
        return copy(tensor)

    monkeypatch.setattr(Denoiser, "forward", computed)
    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    for case in cases:
        log.clear()
        case.run()
        assert log[-1] == "copied", case.name


def test_the_paper_setting_is_256_steps_at_stride_1(
    policy: DiffuserPolicy, cases: list[Case]
) -> None:
    """With this planner's network: 256 calls of as many rows as env steps."""
    [first, *_] = cases
    columns, horizon = (
        policy.planner.layout.transition_dim,
        policy.config.window.horizon,
    )
    assert first.flops == 256 * network_flops(
        policy.networks.denoiser, columns, horizon
    )


def test_a_length_that_the_network_takes_is_measured_once() -> None:
    """A plan of 16 planning steps is 15 env steps long, which round up to 16."""
    fixed = toy_policy(toy_config(planner=PlannerConfig(horizon="fixed")))
    names = [case.name for case in paper_cases(Subject(fixed, POINT, quick=True))]
    assert names == ["this network, 16 steps", "their network, 16 steps"]


def test_a_residual_network_is_measured_in_the_one_way_that_it_runs() -> None:
    usual = Subject(toy_policy(), POINT, compiled=True)
    assert [case.name for case in network_cases(usual)] == ["off", "fused", "compile"]
    network = dataclasses.replace(toy_config().network, residual=True)
    residual = Subject(toy_policy(toy_config(network=network)), POINT, compiled=True)
    assert [case.name for case in network_cases(residual)] == ["off"]


@pytest.mark.parametrize("horizon", [1, 4])
def test_planners_of_one_length_and_without_goals_are_measured(horizon: int) -> None:
    """Their network takes no other length; they may know no positions, and no way."""
    policy = untrained_policy("Pendulum-v1", horizon=horizon)
    measured = measure_speed(policy, "Pendulum-v1", rounds=1, quick=True)
    assert {timing.case.group for timing in measured.timings} == set(TITLES)
    names = [timing.case.name for timing in measured.group("paper's setting")]
    length = "1 step" if horizon == 1 else f"{horizon} steps"
    assert names == [f"{who} network, {length}" for who in ("this", "their")]


def test_the_json_holds_every_figure(measured: SpeedMeasurement) -> None:
    data = json.loads(json.dumps(to_json(measured), allow_nan=False))
    assert len(data["cases"]) == len(measured.timings)
    baseline = data["cases"][0]
    assert (baseline["group"], baseline["times_paper"]) == ("paper's setting", 1.0)
    for case in data["cases"]:
        assert case["fastest_ms"] == pytest.approx(case["median_ms"])  # of one round
        assert case["slowest_ms"] == pytest.approx(case["median_ms"])
        if case["group"] != "network":
            rate = 1000 * case["envs"] / case["median_ms"]
            assert case["plans_per_second"] == pytest.approx(rate)
            ratio = rate / baseline["plans_per_second"]
            assert case["times_paper"] == pytest.approx(ratio)
    assert data["machine"]["threads"] >= 1
    assert data["machine"]["cpu"]
    assert "torch" in data["versions"]


def on_machine(
    measured: SpeedMeasurement, *, threads: int = 1, device: str = "cpu"
) -> SpeedMeasurement:
    machine = {**measured.machine, "threads": threads, "device": device}
    return dataclasses.replace(measured, machine=machine)


def test_the_facts_say_when_the_machine_was_busy(measured: SpeedMeasurement) -> None:
    timings = [
        dataclasses.replace(t, cpu_seconds=[0.4 * s for s in t.seconds])
        for t in measured.timings
    ]
    waited = dataclasses.replace(measured, timings=timings)
    busy = "processor time of other work"
    labels, values = (list(part.cells) for part in facts(on_machine(waited)).columns)
    assert values[labels.index(busy)] == "60%"
    # Two threads compute up to two seconds in one: what they waited is not known.
    assert busy not in facts(on_machine(waited, threads=2)).columns[0].cells
    assert busy not in facts(on_machine(waited, device="cuda:0")).columns[0].cells


def test_the_command_prints_draws_and_writes(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    image = pytest.importorskip("PIL.Image")
    arguments = ["speed", planner, "--quick", "--rounds", "1"]
    files = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "speed.json")]
    assert main([*arguments, *files]) == 0
    shown = capsys.readouterr().out
    for title in TITLES.values():
        assert title in shown
    assert "times faster than the paper's setting" in shown
    assert max(map(len, shown.splitlines()[:40])) <= 80  # fits a terminal, uncut
    assert "…" not in shown
    settings = json.loads((tmp_path / "speed.json").read_text())["settings"]
    assert (settings["name"], settings["quick"], settings["guide"]) == (
        planner,
        True,
        None,
    )
    assert settings["execution"]["executor"]
    pixels = np.asarray(image.open(tmp_path / "out" / "speed.png"))
    assert pixels.std() > 10  # something is drawn


def flattened() -> Any:
    return FlattenObservation(PointEnv())


def test_environments_with_flat_observations_are_measured(
    policy: DiffuserPolicy,
) -> None:
    measured = measure_speed(policy, f"{__name__}:flattened", rounds=1, quick=True)
    assert {timing.case.group for timing in measured.timings} == {*TITLES}


def test_what_cannot_be_measured_is_refused_first(
    policy: DiffuserPolicy, planner: str, tmp_path: Path
) -> None:
    with pytest.raises(SpaceMismatchError):
        measure_speed(policy, "CartPole-v1", rounds=1, quick=True)
    assert main(["speed", planner, "--json", str(tmp_path)]) == 2
    assert main(["speed", planner, "--rounds", "0", "--quick"]) == 2


def test_scalings_vary_one_size(cases: list[Case]) -> None:
    for group in SCALINGS:
        sizes = [(float(c.name), c.flops) for c in cases if c.group == group]
        (small, fewer), (large, more) = sizes
        assert fewer is not None
        assert more == pytest.approx(fewer * large / small, rel=0.15)


def test_the_figure_shows_measurements_and_their_floor(
    measured: SpeedMeasurement,
) -> None:
    pytest.importorskip("matplotlib")
    axes = figure(measured, title="here").axes
    labels = [ax.get_xlabel() for ax in axes]
    assert labels == ["env steps", "candidates", "envs"]
    for ax, group in zip(axes, SCALINGS, strict=True):
        timings = measured.group(group)
        shown = [np.asarray(line.get_ydata()).tolist() for line in ax.lines]
        floors = [timing.floor_ms(measured.peak) for timing in timings]
        assert shown == [[timing.call_ms for timing in timings], floors]
