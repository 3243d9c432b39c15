"""The evaluator: seeds, masks, and what an episode's record says."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from diffuser_policy import evaluate
from diffuser_policy.errors import (
    ConfigError,
    EnvContractError,
    SpaceMismatchError,
    UnknownNameError,
)
from diffuser_policy.evaluation import Timing
from diffuser_policy.evaluation.loop import (
    Progress,
    Tally,
    episode_stream,
    planned_episode,
)
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_policy
from tests.point_env import POINT, PointEnv

run = partial(evaluate, episodes=7, num_envs=3, progress=False)


@pytest.fixture(scope="module")
def policy() -> DiffuserPolicy:
    return toy_policy()


@pytest.fixture(autouse=True)
def _every_env_is_closed() -> Any:
    before = PointEnv.num_open
    yield
    assert PointEnv.num_open == before


class Beeline:
    """Straight to the goal, by Stable-Baselines3's contract; records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, np.ndarray]] = []

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        del deterministic
        offset = observation["desired_goal"] - observation["achieved_goal"]
        self.calls.append((len(offset), episode_start))
        steps = np.zeros(len(offset)) if state is None else state[0]
        assert len(steps) == len(offset)  # an opaque state keeps its size
        return np.clip(10 * offset, -1, 1), (steps + 1,)


class Script(gym.Env[np.ndarray, Any]):
    """Plays back what it is told of success; rewards 1 per env step."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, successes: list[bool | None]) -> None:
        self.successes, self.step_number = successes, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.step_number = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        success = self.successes[self.step_number]
        self.step_number += 1
        info = {} if success is None else {"is_success": success}
        last = self.step_number == len(self.successes)
        return np.ones(3, np.float32), 1.0, False, last, info


class Zeros:
    """A policy of discrete actions."""

    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        return np.zeros(len(observation), np.int64), None


@pytest.mark.parametrize(
    ("told", "success", "final", "time"),
    [
        ([None, True, None], True, None, 2),
        ([False, None, None], False, None, None),
        ([None, False, True], True, True, 3),
        ([True, False], True, False, 1),
        ([None, None], None, None, None),
    ],
)
def test_a_success_that_is_told_once_counts(
    told: list[bool | None], success: bool | None, final: bool | None, time: int | None
) -> None:
    found = evaluate(Zeros(), lambda: Script(told), episodes=1, progress=False)
    (record,) = found.episodes
    assert (record.success, record.final_success) == (success, final)
    assert record.time_to_goal == time


def test_episodes_have_consecutive_seeds_and_their_own_starts(
    policy: DiffuserPolicy,
) -> None:
    evaluation = run(policy, POINT, seed=5)
    env = PointEnv()
    for i, record in enumerate(evaluation.episodes):
        observation, _ = env.reset(seed=5 + i)
        assert record.seed == 5 + i
        assert record.start == tuple(observation["achieved_goal"])
        assert record.goal == tuple(observation["desired_goal"])
    env.close()


def test_results_are_bit_equal_for_the_same_number_of_envs(
    policy: DiffuserPolicy,
) -> None:
    assert run(policy, POINT).episodes == run(policy, POINT).episodes


@pytest.mark.parametrize("num_envs", [1, 2, 16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_results_agree_across_numbers_of_envs(
    policy: DiffuserPolicy, num_envs: int, deterministic: bool
) -> None:
    some = run(policy, POINT, deterministic=deterministic).episodes
    others = run(policy, POINT, deterministic=deterministic, num_envs=num_envs).episodes
    for one, other in zip(some, others, strict=True):
        assert other == dataclasses.replace(
            one, episode_return=other.episode_return, score=other.score
        )
        assert one.episode_return == pytest.approx(other.episode_return, rel=1e-3)


def test_noise_comes_from_the_seed_and_the_number_of_the_episode(
    policy: DiffuserPolicy,
) -> None:
    second, first = (
        run(policy, POINT, seed=seed).episodes[index]
        for seed, index in ((3, 1), (4, 0))
    )
    assert second.start == first.start
    assert second.episode_return != first.episode_return
    streams = {episode_stream(seed, i) for seed in range(20) for i in range(20)}
    assert len(streams) == 400
    assert min(streams) >= 0


def test_deterministic_episodes_depend_on_the_start_alone(
    policy: DiffuserPolicy,
) -> None:
    fixed = partial(run, policy, POINT, num_envs=1, deterministic=True)
    assert fixed(seed=3).episodes[1:] == fixed(seed=4).episodes[:-1]


def test_global_random_state_is_left_alone(policy: DiffuserPolicy) -> None:
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    run(policy, POINT)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002


def test_finished_episodes_are_not_planned_for(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    inner = policy.predict

    def predict(observation: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(observation["observation"]))
        return inner(observation, *args, **kwargs)

    monkeypatch.setattr(policy, "predict", predict)
    evaluation = run(policy, POINT)
    assert sizes[0] == 3
    assert sizes[-1] == 1
    assert sum(sizes) == sum(record.length for record in evaluation.episodes)
    assert sizes == sorted(sizes, reverse=True)
    assert [record.num_plans for record in evaluation.episodes] == [1] * 7


def test_policies_without_rows_keep_their_batch_and_get_flags_once() -> None:
    beeline = Beeline()
    evaluation = run(beeline, POINT)
    assert {size for size, _ in beeline.calls} == {3}
    flags = np.array([flag for _, flag in beeline.calls])
    assert flags[0].all()
    assert flags.sum() == 7
    assert [record.success for record in evaluation.episodes] == [True] * 7
    assert [record.num_plans for record in evaluation.episodes] == [None] * 7
    assert evaluation.summary()["plan_ms"] is None
    assert evaluation.timing.env_steps == sum(r.length for r in evaluation.episodes)


@pytest.mark.parametrize(
    "attributes",
    [
        {"initial_state": None},
        {"initial_state": lambda _batch_size: None},
        {"initial_state": lambda _num_envs, _streams: np.zeros(3)},
        {"initial_state": lambda _batch_size, key: key.split()},
        {"spaces": {"a": 1}},
        {"for_env": "maze"},
    ],
)
def test_attributes_that_mean_something_else_are_left_alone(
    attributes: dict[str, Any],
) -> None:
    policy = Beeline()
    for name, value in attributes.items():
        setattr(policy, name, value)
    assert run(policy, POINT).episodes == run(Beeline(), POINT).episodes


def test_policies_without_rows_agree_across_numbers_of_envs() -> None:
    one, many = (run(Beeline(), POINT, num_envs=n).episodes for n in (1, 5))
    assert one == many


@pytest.mark.parametrize("number", [0, 2, 4, 6])
@pytest.mark.parametrize("with_rows", [False, True])
def test_a_policy_returns_one_action_for_every_environment(
    with_rows: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = toy_policy() if with_rows else Beeline()
    predict = policy.predict

    def other(*given: Any, **settings: Any) -> tuple[np.ndarray, Any]:
        actions, state = predict(*given, **settings)
        return np.resize(actions, (number, *actions.shape[1:])), state

    monkeypatch.setattr(policy, "predict", other)
    message = rf"returned actions of shape \({number}, 2\) for 3 observations"
    with pytest.raises(EnvContractError, match=message):
        run(policy, POINT)


def test_many_environments_begin_in_one_copy_of_their_states(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy for each of them would cost the square of their number."""
    copied: list[list[int]] = []
    first: list[int] = []
    with_rows, predict = PolicyState.with_rows, policy.predict

    def recorded(state: PolicyState, index: Any, other: PolicyState) -> PolicyState:
        copied.append(list(index))
        return with_rows(state, index, other)

    def counted(*given: Any, **settings: Any) -> Any:
        if not first:
            first.append(len(copied))
        return predict(*given, **settings)

    monkeypatch.setattr(PolicyState, "with_rows", recorded)
    monkeypatch.setattr(policy, "predict", counted)
    run(policy, POINT, num_envs=5)
    assert first == [1]
    assert copied[0] == [0, 1, 2, 3, 4]


def test_a_new_environment_is_not_compared_with_each_of_the_others() -> None:
    reads: list[int] = []

    class Counting(PointEnv):
        @property
        def unwrapped(self) -> PointEnv:
            reads.append(id(self))
            return self

    def reads_of_the_first(num_envs: int) -> int:
        reads.clear()
        evaluate(Beeline(), Counting, episodes=num_envs, num_envs=num_envs)
        return reads.count(reads[0])

    assert reads_of_the_first(2) == reads_of_the_first(6)


def test_more_envs_than_episodes_are_not_made(policy: DiffuserPolicy) -> None:
    made = []

    def make() -> gym.Env[Any, Any]:
        made.append(gym.make(POINT))
        return made[-1]

    assert len(run(policy, make, episodes=2, num_envs=50).episodes) == 2
    assert len(made) == 2


@pytest.mark.parametrize(
    ("successes", "success", "final", "time"),
    [
        ([False, True, False], True, False, 2),
        ([True, False, True], True, True, 1),
        ([False, False, False], False, False, None),
        ([None, None, None], None, None, None),
    ],
)
def test_record_tells_whether_when_and_to_stay(
    successes: list[bool | None],
    success: bool | None,
    final: bool | None,
    time: int | None,
) -> None:
    evaluation = run(Zeros(), lambda: Script(successes), episodes=1)
    [record] = evaluation.episodes
    assert (record.success, record.final_success) == (success, final)
    assert record.time_to_goal == time
    assert (record.episode_return, record.length, record.score) == (3.0, 3, None)
    assert (record.start, record.goal) == ((0.0, 0.0, 0.0), None)
    assert evaluation.settings["env"] == "Script"


def test_scores_are_the_environments_own(policy: DiffuserPolicy) -> None:
    evaluation = run(policy, POINT)
    for record in evaluation.episodes:
        assert record.score == 100 + record.episode_return
    score = evaluation.summary()["score"]
    assert score is not None
    assert score.mean == pytest.approx(100 + evaluation.returns.mean())
    assert score.low < score.mean < score.high


class Scored(Script):
    """Scores its episodes itself: 40 and then 60, on the last step."""

    def __init__(self, *, numbers: tuple[float, ...] = (40.0, 60.0)) -> None:
        super().__init__([False, True])
        self.scores = iter(numbers)

    def get_normalized_score(self, episode_return: float) -> float:
        return -episode_return

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, last, info = super().step(action)
        info = {**info, "held": -1}
        if last:
            score = next(self.scores)
            facts = {"latched_score": np.float32(score + 5), "episode": {"t": 0.3}}
            outcome = {"failure": None if np.all(score > 50) else "dropped"}
            kinds = {"pairs": np.eye(2), "flag": np.bool_(True), "n": {1: np.int64(3)}}
            odd = {"bad": np.nan, "other": Ellipsis}
            odd |= {"block_score": [1, 0, 1], "game_score": "3-2"}
            info |= {"score": score, **facts, **outcome, **kinds, **odd}
        return observation, reward, terminated, last, info


def test_a_score_in_the_last_info_wins_and_brings_details_along() -> None:
    evaluation = run(Zeros(), Scored, episodes=2, num_envs=1)
    assert [record.score for record in evaluation.episodes] == [40.0, 60.0]
    assert evaluation.episodes[0].details == {
        "latched_score": 45.0,
        "failure": "dropped",
        "pairs": [[1.0, 0.0], [0.0, 1.0]],
        "flag": True,
        "n": {"1": 3},
        "bad": None,
        "other": "Ellipsis",
        "block_score": [1, 0, 1],
        "game_score": "3-2",
    }
    latched = evaluation.summary()["latched_score"]
    assert latched is not None
    assert latched.mean == 55.0
    assert not evaluation.summary().keys() & {"block_score", "game_score"}
    assert evaluation.failures() == {"dropped": 1}


@pytest.mark.parametrize("score", [np.nan, np.ones(2)])
def test_a_score_that_is_no_number_is_none_of_the_environments(score: Any) -> None:
    evaluation = run(Zeros(), lambda: Scored(numbers=(score,)), episodes=1)
    [record] = evaluation.episodes
    assert (record.score, record.details) == (-2.0, {})


def test_options_reach_the_environment_and_the_report(policy: DiffuserPolicy) -> None:
    stay = {"terminate": False, "max_episode_steps": 4}
    evaluation = run(policy, POINT, env_options=stay)
    assert {record.length for record in evaluation.episodes} == {4}
    assert evaluation.settings["env_options"] == stay
    assert "env_options" not in run(policy, POINT, episodes=1).settings


def test_options_that_an_environment_lacks_are_refused(policy: DiffuserPolicy) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made with .*'size'"):
        run(policy, POINT, env_options={"size": 3})
    with pytest.raises(ConfigError, match="need the id"):
        run(policy, PointEnv, env_options={"terminate": False})


def test_a_planned_episode_is_the_first_of_evaluate(policy: DiffuserPolicy) -> None:
    [record] = run(policy, POINT, episodes=1, seed=9).episodes
    with closing(gym.make(POINT)) as env:
        observation, _ = env.reset(seed=9)
        episode = planned_episode(policy, env, observation, seed=9)
    assert dataclasses.replace(episode.record, num_plans=1) == record
    assert len(episode.path) == record.length + 1


def test_the_plan_of_an_episode_is_the_one_that_is_executed(
    policy: DiffuserPolicy,
) -> None:
    with closing(gym.make(POINT)) as env:
        observation, _ = env.reset(seed=9)
        plan = planned_episode(policy, env, observation, seed=9).plan
    state = policy.initial_state(1, np.array([episode_stream(9, 0)]))
    _, following = policy.predict(observation, state)
    assert np.array_equal(plan.path(), following.observations[0, : plan.lengths[0]])


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({"success": True, "time_to_goal": 1}, "arrived after 1 env step"),
        (
            {"success": True, "time_to_goal": 7, "score": 9.96},
            "arrived after 7 env steps, score 10.0",
        ),
        ({"success": False, "score": 0.0}, "did not arrive, score 0.0"),
        ({"success": None}, "return -2.5"),
        ({"success": None, "score": 93.0}, "return -2.5, score 93.0"),
    ],
)
def test_outcomes_are_told_in_words(facts: dict[str, Any], outcome: str) -> None:
    record = Tally(Script([None]), 0, np.zeros(3)).record()
    changed = {"episode_return": -2.5, **facts}
    assert dataclasses.replace(record, **changed).outcome == outcome


def test_progress_counts_env_steps(
    policy: DiffuserPolicy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, size in (("COLUMNS", "200"), ("LINES", "50")):
        monkeypatch.setenv(name, size)  # where all fits, whatever the rate
    evaluate(policy, POINT, episodes=3, num_envs=2, progress=True)
    shown = capsys.readouterr().err
    assert "90.0/90.0" in shown
    assert "episodes=3" in shown
    assert "success=" in shown
    run(policy, POINT)
    assert capsys.readouterr().err == ""


def test_progress_reads_each_record_once() -> None:
    """The time of many episodes does not grow with the square of their number."""
    reads = Counter[int]()

    @dataclasses.dataclass
    class Record:
        number: int
        length: int = 1
        success: bool | None = None

        @property
        def score(self) -> float:
            reads[self.number] += 1
            return float(self.number)

    with closing(Progress(Script([None]), 5, progress=True)) as bar:
        for number in range(1, 5):
            bar.finish(Record(number, success=number > 1))  # type: ignore[arg-type]
        bar.finish(Record(90, success=None))  # type: ignore[arg-type]
        assert bar.postfix == "episodes=5, score=20.0, success=0.75"
    assert len(set(reads.values())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 .*got -1"),
    ],
)
def test_counts_are_checked(
    policy: DiffuserPolicy, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(policy, POINT, **arguments)


def test_one_environment_is_not_enough(policy: DiffuserPolicy) -> None:
    env: Any = gym.make(POINT)
    with pytest.raises(ConfigError, match="Pass an id, or a function"):
        run(policy, env)
    env.close()


def test_unknown_environments_are_answered_with_the_nearest(
    policy: DiffuserPolicy,
) -> None:
    with pytest.raises(UnknownNameError, match="test/Point-v0"):
        run(policy, "test/Pint-v0")


def test_environments_with_other_spaces_are_refused(policy: DiffuserPolicy) -> None:
    with pytest.raises(SpaceMismatchError, match="observation space"):
        run(policy, lambda: Script([True]))


def test_failing_policies_leave_no_environment_open(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "predict", predict)
    with pytest.raises(KeyboardInterrupt):
        run(policy, POINT)


def test_timing_leaves_the_warm_up_out() -> None:
    timing = Timing(
        predict_seconds=1.8,
        env_steps=16,
        plan_seconds=(1.0, 0.2, 0.1),
        plan_rows=(4, 2, 1),
    )
    assert timing.plan_milliseconds().tolist() == pytest.approx([100, 100])
    assert timing.call_milliseconds().tolist() == pytest.approx([200, 100])
    assert timing.control_rate == pytest.approx(16 / 1.8)
    nothing = Timing(predict_seconds=0.0, env_steps=0)
    assert nothing.control_rate == 0
    assert len(nothing.plan_milliseconds()) == len(nothing.call_milliseconds()) == 0
    alone = dataclasses.replace(timing, plan_seconds=(1.0,), plan_rows=(2,))
    assert alone.plan_milliseconds().tolist() == [500]


def test_times_of_calls_are_put_together_once_however_many_calls_there_are(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Timing] = []
    inner = Timing.__init__

    def recorded(timing: Timing, **fields: Any) -> None:
        made.append(timing)
        inner(timing, **fields)

    monkeypatch.setattr(Timing, "__init__", recorded)
    evaluation = run(policy, POINT)
    assert len(made) == 1
    assert sum(evaluation.timing.plan_rows) == 7  # one plan an episode
    assert len(evaluation.timing.plan_seconds) == len(evaluation.timing.plan_rows) > 1
