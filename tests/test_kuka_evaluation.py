"""Block stacking in everybody's loops: the evaluator, a plain one, other people's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_envs import StackDemonstrator
from diffuser_envs.kuka.columns import observation_columns
from diffuser_policy import DiffuserPolicy, evaluate, make_guide
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    PlannerConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation.loop import episode_stream
from diffuser_policy.evaluation.report import to_json
from diffuser_policy.testing import toy_config, toy_policy
from tests.kuka_env_helpers import IDS

pybullet = pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

SHORT: dict[str, Any] = {"max_episode_steps": 30}
FACTS = {"latched_score", "pairs", "met", "failure", "attempts", "positions"}


class Still:
    """Keeps the joints where they are."""

    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        return np.pad(observation[:, :7], ((0, 0), (0, 1))), None


@pytest.fixture(scope="module")
def policy() -> DiffuserPolicy:
    """Return a planner that learned nothing, on the columns of blocks."""
    env = gymnasium.make(IDS["unconditional"], max_episode_steps=60)
    demonstrator, state = StackDemonstrator("unconditional"), None
    observation, _ = env.reset(seed=0)
    rows = []
    for _ in range(60):
        action, state = demonstrator.predict(observation, state)
        rows.append((observation, action))
        observation, *_ = env.step(action)
    space: Any = env.action_space
    env.close()
    observations, actions = (np.stack(part) for part in zip(*rows, strict=True))
    fields = {
        "observation": observations,
        "action": actions,
        "reward": np.zeros(60),
        "terminated": np.zeros(60, np.bool_),
    }
    columns = {name: list(value) for name, value in observation_columns().items()}
    metadata = {
        "dataset_id": "toy/kuka-v0",
        "env_id": IDS["unconditional"],
        "observation_columns": columns,
        "action_low": space.low.tolist(),
        "action_high": space.high.tolist(),
    }
    config = toy_config(
        window=WindowConfig(
            horizon=16, actions=False, hindsight_goal="none", features="kuka-blocks"
        ),
        network=NetworkConfig(
            architecture="objects", residual=True, dim=16, num_denoising_steps=8
        ),
        time_to_goal=None,
        planner=PlannerConfig(
            num_sampling_steps=2, num_candidates=2, ranking="sum", steadiness=0.0
        ),
        execution=ExecutionConfig(executor="features", replan_interval=10),
    )
    flat = FlatDataset(fields, np.array([0, 60]), metadata)
    return toy_policy(config, flat=flat).with_guide(make_guide("stack-task"))


def test_the_score_is_that_of_the_final_state_with_its_details() -> None:
    """The demonstrator builds the tower that each episode asks for."""
    demonstrator = StackDemonstrator("conditional")
    results = evaluate(
        demonstrator, IDS["conditional"], episodes=2, num_envs=2, progress=False
    )
    for record in results.episodes:
        assert record.score == 100.0
        assert set(record.details) == FACTS
        assert record.details["failure"] is None
        assert record.details["pairs"] == list(record.goal or ())
        assert record.details["attempts"]["placed"] == 3
    latched = results.summary()["latched_score"]
    assert latched is not None
    assert latched.mean == 100.0
    json.dumps(to_json(results), allow_nan=False)


def test_the_demonstrator_does_the_same_however_many_environments_there_are() -> None:
    one, two = (
        evaluate(
            StackDemonstrator("conditional"),
            IDS["conditional"],
            episodes=2,
            num_envs=num_envs,
            progress=False,
            env_options=SHORT,
        ).episodes
        for num_envs in (1, 2)
    )
    assert one == two


def test_failures_are_counted_and_options_of_the_environment_set() -> None:
    options = {**SHORT, "grasp": "magic", "joint_noise": 0.01}
    results = evaluate(
        Still(),
        IDS["unconditional"],
        episodes=2,
        num_envs=2,
        progress=False,
        env_options=options,
    )
    assert [record.score for record in results.episodes] == [0.0, 0.0]
    assert results.failures() == {"never reached": 2}
    assert results.settings["env_options"] == options


def test_options_that_the_environment_refuses_are_explained() -> None:
    for options in ({"grasp": "glue"}, {"joint_noise": -1.0}, {"wind": 3}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            evaluate(Still(), IDS["unconditional"], env_options=options)


@pytest.mark.parametrize("task", IDS)
def test_a_planner_does_the_same_however_many_environments_there_are(
    policy: DiffuserPolicy, task: str
) -> None:
    """Batched arithmetic may differ in the last bits, episodes must not."""
    if task == "unconditional":
        policy = policy.with_guide(None)
    one, two = (
        evaluate(
            policy,
            IDS[task],
            episodes=2,
            num_envs=num_envs,
            progress=False,
            env_options=SHORT,
        ).episodes
        for num_envs in (1, 2)
    )
    for alone, together in zip(one, two, strict=True):
        assert (alone.start, alone.goal) == (together.start, together.goal)
        assert alone.num_plans == together.num_plans
        np.testing.assert_allclose(
            alone.details["positions"], together.details["positions"], atol=1e-3
        )


def test_a_wrapper_that_flattens_observations_hides_no_task(
    policy: DiffuserPolicy,
) -> None:
    env = gymnasium.make(IDS["conditional"])
    flat = gymnasium.wrappers.FlattenObservation(env)
    seen, _ = env.reset(seed=0)
    hidden, _ = flat.reset(seed=0)
    expected = policy.plan(seen)
    found = policy.for_env(flat).plan(hidden)
    np.testing.assert_array_equal(found.observations, expected.observations)
    env.close()


def test_the_plain_loop_is_the_evaluators(policy: DiffuserPolicy) -> None:
    [record] = evaluate(
        policy,
        IDS["rearrangement"],
        episodes=1,
        seed=4,
        progress=False,
        env_options=SHORT,
    ).episodes
    env = gymnasium.make(IDS["rearrangement"], **SHORT)
    observation, info = env.reset(seed=4)
    state, done = policy.initial_state(1, np.array([episode_stream(4, 0)])), False
    while not done:
        action, state = policy.predict(observation, state)
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    env.close()
    assert info["score"] == record.score
    np.testing.assert_array_equal(info["positions"], record.details["positions"])


def test_stable_baselines_loop_takes_planner_and_demonstrator(
    policy: DiffuserPolicy,
) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    for acting in (policy, StackDemonstrator("conditional")):
        envs = vec_env.DummyVecEnv(
            [lambda: gymnasium.make(IDS["conditional"], **SHORT)] * 2
        )
        envs.seed(5)
        totals, lengths = evaluation.evaluate_policy(
            acting, envs, n_eval_episodes=2, return_episode_rewards=True, warn=False
        )
        envs.close()
        assert lengths == [30, 30]
        assert all(0.0 <= total <= 30.0 for total in totals)


def test_the_example_keeps_rows_that_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on where it was, and measures anew what other settings ask for."""
    import runpy

    example = Path(__file__).parents[1] / "examples/experiments" / "block_stacking.py"
    main = runpy.run_path(str(example))["main"]
    arguments: dict[str, Any] = {
        "methods": ["demonstrator"],
        "tasks": ["Unconditional"],
        "results": tmp_path / "table.json",
    }
    main(episodes=1, **arguments)
    assert "mean score of all 1 episodes: 100.0" in capsys.readouterr().out
    page = (tmp_path / "table.md").read_text()
    assert "| demonstrator | **100.0** | 100.0 | 100 [21, 100] | none |" in page
    [row] = (tmp_path / "table").iterdir()
    before = row.stat().st_mtime_ns
    main(episodes=1, **arguments)
    assert row.stat().st_mtime_ns == before
    main(episodes=2, **arguments)
    assert len(json.loads(row.read_text())["episodes"]) == 2
    with pytest.raises(SystemExit, match="No method 'demonstrater'"):
        main(**{**arguments, "methods": ["demonstrater"]})
