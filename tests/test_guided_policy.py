"""Policies that are steered: what guides change, what is kept, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.choices import Placement
from diffuser_policy.config import ValueConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.guidance import Guidance
from diffuser_policy.errors import ConfigError, GuideError, UnknownNameError
from diffuser_policy.guides.guide import FunctionGuide, Guide, as_guide
from diffuser_policy.guides.registry import make_guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing.toys import toy_config, toy_policy
from tests.policy_helpers import observe, untrained_policy
from tests.value_helpers import rewarded

PLACEMENTS: tuple[Placement, ...] = ("clean", "mean", "noisy")


def linear(trajectory: Trajectory) -> Tensor:
    """A guide to the right and up."""
    return trajectory.position.sum(dim=(1, 2))


def test_a_guide_changes_plans_and_leaves_its_policy_alone() -> None:
    policy, observation = toy_policy(), observe()
    before = policy.plan(observation)
    guided = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)), guide_scale=0.2)
    assert guided.networks is policy.networks
    moved = guided.plan(observation).path()[1:-1, :2] - before.path()[1:-1, :2]
    assert moved.mean() > 0.05
    np.testing.assert_array_equal(
        policy.plan(observation).observations, before.observations
    )
    np.testing.assert_array_equal(
        guided.with_guide(None).plan(observation).observations, before.observations
    )


def test_settings_of_a_guide_survive_other_settings() -> None:
    guided = toy_policy().with_guide(linear, guide_scale=0.2, guide_placement="mean")
    changed = guided.with_settings(num_candidates=3)
    assert changed.config.guide is guided.config.guide
    assert changed.config.planner.guide_scale == 0.2
    assert changed.planner.guidance is not None
    assert changed.planner.guidance.placement == "mean"


def valued_policy(unit: float = 1.0) -> DiffuserPolicy:
    """Return a planner with a value network, of observations in another unit."""
    flat = rewarded()
    fields = dict(flat.fields)
    for name in ("observation", "achieved_goal", "desired_goal"):
        fields[name] = unit * fields[name]
    value = ValueConfig(dim=16, multipliers=(1, 4), discount=0.9)
    flat = FlatDataset(fields, flat.run_starts, flat.metadata)
    return toy_policy(toy_config(value=value), flat=flat)


def test_plans_steered_by_a_learned_value_do_not_depend_on_units() -> None:
    """No other guide was asked for, so that the value steers."""
    observation = observe()
    plans = []
    for unit in (1.0, 1e-3):
        told = {name: (unit * part).astype("f4") for name, part in observation.items()}
        plans.append(valued_policy(unit).plan(told).observations / unit)
    np.testing.assert_allclose(plans[0], plans[1], rtol=1e-3, atol=1e-3)


def test_a_guide_is_followed_where_it_suits_unless_a_place_is_named() -> None:
    """A learned value on noisy plans, formulas and sums with them on clean ones."""
    policy, value = valued_policy(), make_guide("value")

    def placement(guide: Any, **settings: Any) -> str:
        guidance = policy.with_guide(guide, **settings).planner.guidance
        assert guidance is not None
        return guidance.placement

    assert placement(value) == placement(0.5 * value + value) == "mean"
    assert placement(linear) == placement(value + linear) == "clean"
    assert placement(value, guide_placement="clean") == "clean"
    assert placement(linear, guide_placement="noisy") == "noisy"


def test_ranking_by_a_guide_selects_without_a_gradient() -> None:
    """Scale zero and ranking "guide": sample and select."""

    def to_the_right(trajectory: Trajectory) -> Tensor:
        return trajectory.position[:, 5, 0].detach()

    policy = toy_policy(num_candidates=16)
    chosen = policy.with_guide(
        to_the_right, guide_scale=0.0, ranking="guide", ranking_tolerance=1e6
    ).plan(observe())
    plain = policy.plan(observe())
    np.testing.assert_array_equal(chosen.candidates, plain.candidates)
    assert chosen.chosen[0] == plain.candidates[0, :, 5, 0].argmax()
    np.testing.assert_allclose(
        chosen.values[0], plain.candidates[0, :, 5, 0], rtol=1e-5, atol=1e-6
    )


def test_predict_takes_another_guide_between_calls() -> None:
    """Plans that were made under another guide are made anew at once."""
    policy, observation = toy_policy(), observe()
    _, state = policy.predict(observation)
    guided = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)), guide_scale=5.0)
    _, plain = policy.predict(observation, state)
    assert plain.num_plans.tolist() == [1]
    _, steered = guided.predict(observation, state)
    assert steered.num_plans.tolist() == [2]
    moved = steered.observations[0, 1:7, :2] - plain.observations[0, 1:7, :2]
    assert moved.min() > 1.0
    _, steered = guided.predict(observation, steered)
    assert steered.num_plans.tolist() == [2]
    for other in (policy, guided.with_settings(guide_scale=0.0)):
        _, state = other.predict(observation, steered)
        assert state.num_plans.tolist() == [3]


def test_plans_are_made_anew_wherever_a_guide_differs() -> None:
    """Python's hashes of -1.0 and -2.0 are equal; with a scale of 0, guides rank."""
    policy, observation = toy_policy(), observe()

    def waypoint(x: float, **settings: Any) -> DiffuserPolicy:
        point = make_guide("waypoint", position=(x, 0.5), time=2)
        return policy.with_guide(1.0 * point + linear, **settings)

    ranked = {"guide_scale": 0.0, "ranking": "guide"}
    for first, second in (
        (waypoint(-1.0), waypoint(-2.0)),
        (waypoint(-1.0, guide_scale=-1.0), waypoint(-1.0, guide_scale=-2.0)),
        (waypoint(-1.0, **ranked), waypoint(1.0, **ranked)),
        (waypoint(-1.0), waypoint(-1.0, guide_placement="mean")),
        (waypoint(-1.0), waypoint(-1.0, guide_steps=3)),
        (waypoint(-1.0), waypoint(-1.0, guide_cutoff=2)),
    ):
        _, state = first.predict(observation)
        assert first.predict(observation, state)[1].num_plans.tolist() == [1]
        assert second.predict(observation, state)[1].num_plans.tolist() == [2]


def test_a_guide_at_the_address_of_another_is_another() -> None:
    policy, state, plans = toy_policy(), None, []
    for x in (0.0, 5.0, -5.0, 2.0):

        def near(trajectory: Trajectory, x: float = x) -> Tensor:
            return -(trajectory.position - x).square().sum(dim=(1, 2))

        steered = policy.with_guide(near)
        _, state = steered.predict(observe(), state)
        plans.append(state.num_plans.tolist())
        del steered, near  # it is freed, and the next one takes its place
    assert plans == [[1], [2], [3], [4]]


class Slim:
    """A guide that takes no weak references, and compares by identity."""

    __slots__ = ("x",)

    def __init__(self, x: float) -> None:
        self.x = x

    def __call__(self, trajectory: Trajectory) -> Tensor:
        return self.x * linear(trajectory)


class Hashed:
    """A guide that compares by its value; Python's hashes of -1 and -2 are equal."""

    def __init__(self, x: float) -> None:
        self.x = x

    def __call__(self, trajectory: Trajectory) -> Tensor:
        return self.x * linear(trajectory)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and other.x == self.x

    def __hash__(self) -> int:
        return hash(self.x)


@dataclasses.dataclass(frozen=True)
class Held(Guide):
    """A guide that holds something."""

    held: Any

    def __call__(self, trajectory: Trajectory) -> Tensor:
        return linear(trajectory)


@pytest.mark.parametrize(
    "made",
    [
        lambda x: Held(torch.tensor([x, x])),
        lambda x: Held(np.array([x, x])),
        lambda x: Held({"at": x}),
        lambda x: Held((Slim(x),)),
        lambda x: FunctionGuide(weighted, parameters=(("weights", {"at": x}),)),
        lambda x: as_guide(Slim(x)),
        lambda x: as_guide(Hashed(x)),
    ],
    ids=["tensor", "array", "table", "slim", "parameter", "object", "hashed"],
)
def test_guides_that_hold_other_values_are_other_guides(
    made: Callable[[float], Guide],
) -> None:
    """One guide after another is freed, and the next one takes its place."""
    keys = {Guidance(guide=made(-1.0 - number)).key for number in range(50)}
    assert len(keys) == 50


def weighted(trajectory: Trajectory, *, weights: dict[str, float]) -> Tensor:
    return weights["at"] * linear(trajectory)


@pytest.mark.parametrize(
    "made",
    [
        lambda: FunctionGuide(weighted, parameters=(("weights", {"at": 1.0}),)),
        lambda: Held((1.0, "a", Hashed(2.0))),
        lambda: as_guide(Hashed(2.0)),
    ],
    ids=["table", "dataclass", "hashed"],
)
def test_equal_guides_are_one_guide(made: Callable[[], Guide]) -> None:
    assert len({Guidance(guide=made()).key for _ in range(5)}) == 1


@dataclasses.dataclass(slots=True)
class SlimTable:
    """No guide can be looked up by it: it has neither a hash nor weak references."""

    rows: list[float]


class Elementwise(Hashed):
    """Has a hash, but no single answer to whether it is equal."""

    def __eq__(self, other: object) -> Any:
        return torch.ones(2) == self.x

    __hash__ = Hashed.__hash__


@pytest.mark.parametrize(
    "held",
    [
        torch.ones(2),
        np.ones(2),
        Slim(1.0),
        Hashed(1.0),
        Hashed([1.0]),  # type: ignore[arg-type]  # whose hash raises
        slice(0, 2),
        bytearray(b"ab"),
        SlimTable([1.0]),
        Elementwise(1.0),
    ],
)
def test_a_guide_that_is_kept_is_the_same_guide(held: Any) -> None:
    guide = Held(held)
    assert Guidance(guide=Held(copy.deepcopy(held))).key  # has the same hash
    assert Guidance(guide=guide).key == Guidance(guide=guide).key


def test_a_sum_of_many_guides_that_are_looked_up_stays_the_same_guide() -> None:
    guide = sum((Held(frozenset({number})) for number in range(1, 200)), Held(Slim(1)))
    assert Guidance(guide=guide).key == Guidance(guide=guide).key


def test_methods_of_two_objects_are_two_guides() -> None:
    """The next object takes the place of the one before."""

    class Upwards:
        def value(self, trajectory: Trajectory) -> Tensor:
            return linear(trajectory)

    keys = {Guidance(guide=as_guide(Upwards().value)).key for _ in range(50)}
    assert len(keys) == 50


def test_guides_of_two_classes_are_two_guides() -> None:
    @dataclasses.dataclass(frozen=True)
    class Left(Guide):
        strength: float = 1.0

    @dataclasses.dataclass(frozen=True)
    class Right(Guide):
        strength: float = 1.0

    keys = [Guidance(guide=guide).key for guide in (Left(), Right(), Left())]
    assert keys[0] == keys[2] != keys[1]


def of_the_package() -> DiffuserPolicy:
    point = 2.0 * make_guide("waypoint", position=(0.1, 0.2), columns="position")
    return toy_policy().with_guide(point)


def of_a_user() -> DiffuserPolicy:
    return toy_policy().with_guide(linear)


@pytest.mark.parametrize(("made", "num_plans"), [(of_the_package, 1), (of_a_user, 2)])
def test_a_guide_of_the_package_is_the_same_in_every_process(
    made: Callable[[], DiffuserPolicy], num_plans: int
) -> None:
    """A user's function may be another one there: its plans are made anew."""
    script = (
        "import pickle, sys; from tests import test_guided_policy as here; "
        f"_, state = here.{made.__name__}().predict(here.observe()); "
        "sys.stdout.buffer.write(pickle.dumps(state))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    _, state = made().predict(observe(), pickle.loads(done.stdout))  # noqa: S301
    assert state.num_plans.tolist() == [num_plans]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are never forked")
def test_guides_that_are_made_after_a_fork_differ() -> None:
    """Those that were made before it stay the same."""
    script = (
        "import os\n"
        "from diffuser_policy.guides.identity import key_of\n"
        "class Mine: ...\n"
        "old = Mine()\n"
        "key = key_of(old)\n"
        "inlet, outlet = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.write(outlet, f'{key_of(old)} {key_of(Mine())}'.encode())\n"
        "    os._exit(0)\n"
        "kept, new = map(int, os.read(inlet, 99).split())\n"
        "assert kept == key and new != key_of(Mine())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are never forked")
def test_a_fork_waits_for_other_threads() -> None:
    script = (
        "import os, signal, threading, time\n"
        "from diffuser_policy.interrupts import forkable_lock\n"
        "lock, held = forkable_lock(), threading.Event()\n"
        "def hold():\n"
        "    with lock:\n"
        "        held.set()\n"
        "        time.sleep(0.2)\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(5)\n"
        "    with lock:\n"
        "        os._exit(0)\n"
        "with lock:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_values_of_guides_are_of_any_precision() -> None:
    def near(trajectory: Trajectory) -> Tensor:
        return -trajectory.position.square().sum(dim=(1, 2)).to(torch.bfloat16)

    ranked = toy_policy().with_guide(near, ranking="guide", guide_scale=0.0)
    assert np.isfinite(ranked.predict(observe())[0]).all()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"guide_scale": float("nan")}, ConfigError, "must be a finite number"),
        ({"guide_steps": 0}, ConfigError, "guide_steps"),
        ({"guide_cutoff": -1}, ConfigError, "guide_cutoff"),
        ({"guide_placement": "cleen"}, ConfigError, "'clean'"),
        ({"guide_scal": 1.0}, UnknownNameError, "'guide_scale'"),
    ],
)
def test_bad_settings_are_named(
    settings: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        toy_policy().with_guide(linear, **settings)


def test_ranking_by_a_guide_needs_one() -> None:
    with pytest.raises(ConfigError, match="with_guide"):
        toy_policy(ranking="guide")


def test_columns_that_a_planner_lacks_are_listed() -> None:
    policy = toy_policy().with_guide(lambda t: t.altitude.sum(dim=(1, 2)))
    with pytest.raises(UnknownNameError, match=r"'altitude'.*position, velocity"):
        policy.plan(observe())
    with pytest.raises(AttributeError, match="altitude"):
        policy.plan(observe())


def test_a_failing_guide_leaves_the_state_as_it_was() -> None:
    policy = toy_policy(replan_interval=1, horizon="predicted")
    _, state = policy.predict(observe())
    before = [part.copy() for part in state]
    broken = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)) * float("nan"))
    with pytest.raises(GuideError, match="NaN"):
        broken.predict(observe(), state)
    assert all(map(np.array_equal, before, state))


def test_a_function_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    guided = toy_policy().with_guide(lambda t: t.position.sum(dim=(1, 2)))
    with pytest.raises(GuideError, match="register_guide"):
        guided.save_pretrained(tmp_path / "guided")
    assert not (tmp_path / "guided" / "config.json").exists()


def test_guides_are_saved_with_the_planner(tmp_path: Path) -> None:
    guide = 2.0 * make_guide("keep-out", center=(0.5, 0.0), radius=0.25)
    guided = toy_policy().with_guide(guide, guide_scale=0.5)
    guided.save_pretrained(tmp_path)
    loaded = DiffuserPolicy.from_pretrained(tmp_path)
    assert loaded.config.guide == guided.config.guide
    np.testing.assert_array_equal(
        loaded.plan(observe()).observations, guided.plan(observe()).observations
    )


def test_removing_a_guide_goes_back_to_a_ranking_that_needs_none() -> None:
    guided = toy_policy().with_guide(linear, ranking="guide")
    assert "guide linear" in repr(guided)
    assert guided.guide is not None
    assert guided.with_guide(None).config.planner.ranking == "time_to_goal"
    assert guided.with_guide(None, ranking="first").config.planner.ranking == "first"
    with pytest.raises(ConfigError, match="with_guide"):
        guided.with_settings(guide=None)


@pytest.mark.parametrize("placement", ["mean", "noisy"])
def test_guidance_that_could_do_nothing_is_refused(placement: Placement) -> None:
    """The only denoising step there is has no variance to scale a gradient by."""
    settings = {"num_sampling_steps": 1, "min_guided_steps": 1}
    with pytest.raises(ConfigError, match="at least 2 denoising steps"):
        toy_policy().with_guide(linear, guide_placement=placement, **settings)
    toy_policy().with_guide(linear, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warm_start": 0.01}, r"Got warm_start=0\.01, warm_start_steps=1"),
        ({"warm_start": 0.5, "warm_start_steps": 1}, "warm_start_steps=1"),
        ({"warm_start": 0.5, "min_guided_steps": 1}, "warm_start_steps=1"),
    ],
)
def test_warm_starts_with_guidance_that_could_do_nothing_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    """The steps that a warm start leaves count, whoever chose their number."""
    policy = toy_policy(horizon="shrinking", replan_interval=1)
    with pytest.raises(ConfigError, match=said):
        policy.with_guide(linear, guide_placement="mean", **settings)
    warm = policy.with_guide(linear, **settings).planner
    assert warm.warm_start_steps == 1
    assert len(warm.sampler.grid_from(settings["warm_start"], 1)) == 2


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_warm_replans_are_guided_at_every_placement(placement: Placement) -> None:
    calls: list[int] = []

    def counting(trajectory: Trajectory) -> Tensor:
        calls.append(trajectory.denoising_step)
        return linear(trajectory)

    policy = toy_policy(warm_start=0.2, replan_interval=1, horizon="shrinking")
    guided = policy.with_guide(counting, guide_placement=placement, guide_scale=0.1)
    _, state = guided.predict(observe())
    calls.clear()
    guided.predict(observe(), state)
    assert len(calls) > 0


def test_a_guide_on_states_is_refused_where_plans_are_a_single_action() -> None:
    single, longer = (untrained_policy("Pendulum-v1", horizon=h) for h in (1, 4))
    slow = make_guide("speed-limit", speed=0.1, columns="observation")
    told = r"SpeedLimit has no effect: it judges states.*--window\.horizon 4"
    for guide in (slow, 2 * slow, make_guide("action-effort") + slow):
        with pytest.raises(ConfigError, match=told):
            single.with_guide(guide)
        longer.with_guide(guide)


def test_a_guide_that_looks_at_actions_steers_plans_of_a_single_action() -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)

    def rarely(trajectory: Trajectory) -> Tensor:
        """Ask for one action, from nearby only."""
        far = (trajectory.actions - 1.2345).abs() - 1e-9
        return -torch.relu(-far).sum(dim=(1, 2))

    def networked(trajectory: Trajectory) -> Tensor:
        return trajectory.normalized.sum(dim=(1, 2))

    for guide in (make_guide("action-effort"), rarely, networked):
        assert single.with_guide(guide).guide is not None


def test_a_guide_that_fails_keeps_its_own_error() -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)
    guided = single.with_guide(lambda t: t.velocity.sum(dim=(1, 2)))
    with pytest.raises(UnknownNameError, match=r"'velocity'.*--window\.velocity"):
        guided.predict(np.zeros(3, np.float32))


def test_a_saved_guide_without_an_effect_is_no_mistake() -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)
    saved = dataclasses.replace(single.config, guide=as_guide(of_states))
    policy = DiffuserPolicy(saved, single.networks)
    policy.with_settings(num_candidates=1).with_guide(policy.guide)


def test_a_new_guide_that_neither_steers_nor_ranks_is_refused() -> None:
    """A planner may be saved with a guide that only ranks, or does nothing."""
    saved = toy_policy().with_guide(linear, guide_scale=0.0)
    told = r"to_the_left has no effect: .*guide_scale=1\.0 .* or ranking='guide' to"
    with pytest.raises(ConfigError, match=told):
        saved.with_guide(to_the_left)
    for settings in ({"guide_scale": 0.2}, {"guide_scale": 0.0}, {"ranking": "guide"}):
        assert saved.with_guide(to_the_left, **settings).guide is not None
    assert saved.with_guide(saved.guide).with_guide(None).guide is None


def to_the_left(trajectory: Trajectory) -> Tensor:
    return -linear(trajectory)


def of_states(trajectory: Trajectory) -> Tensor:
    return trajectory["observation"].sum(dim=(1, 2))
