"""Datasets of whole episodes, by a toy generator that sometimes fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from diffuser_policy.cli.collect import CollectCommand
from diffuser_policy.cli.collect import collect as collect_command
from diffuser_policy.config import CollectSettings
from diffuser_policy.data import demonstrators
from diffuser_policy.data.collection import ShardFolder, collect
from diffuser_policy.data.minari import load_flat, recorded_facts
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    EnvContractError,
    UnknownNameError,
)
from tests.data_helpers import EXPERT, assert_same, make_episode, record

minari = pytest.importorskip("minari")

pytestmark = pytest.mark.usefixtures("datasets")

TOY = f"{__name__}:ToyDemonstrator"
DATASET = "test/toys-v0"
TOYS = CollectSettings(
    env_id="Pendulum-v1",
    dataset_id=DATASET,
    demonstrator=TOY,
    num_episodes=23,
    num_workers=1,
    seed=4,
)


class Toy(NamedTuple):
    """An episode as a generator returns it."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray


@dataclass
class ToyGenerator:
    """Episodes of random length; the share `failing` of all attempts fails."""

    failing: float = 0.0
    scale: float = 1.0

    @classmethod
    def from_env(cls, env: Any, **options: Any) -> ToyGenerator:
        assert env.action_space.shape == (1,)
        return cls(**options)

    def record(self, seed: int) -> Toy | None:
        rng = np.random.default_rng(seed)
        if rng.random() < self.failing:
            return None
        length = int(rng.integers(3, 9))
        return Toy(
            self.scale * rng.normal(size=(length + 1, 3)).astype(np.float32),
            rng.uniform(-2, 2, (length, 1)).astype(np.float32),
            rng.random(length),
        )


class BrokenGenerator(ToyGenerator):
    """A reward of the second step is NaN, and what follows it is not finite either."""

    def record(self, seed: int) -> Toy | None:
        toy = super().record(seed)
        assert toy is not None
        toy.rewards[1:] = np.nan
        toy.observations[3:, 1] = np.inf
        return toy


class ParticularGenerator(ToyGenerator):
    """Finds out only when it records that it cannot work with its options."""

    def record(self, seed: int) -> Toy | None:
        raise ValueError(f"start {seed} does not fit on the table")


class VerifyingGenerator(ToyGenerator):
    """Confirms all episodes with an even seed; stores under an id of its own."""

    dataset_id = "test/own-name-v3"
    asked: ClassVar[list[int]] = []

    def verify(self, seed: int) -> bool:
        self.asked.append(seed)
        return seed % 2 == 0


class ToyDemonstrator:
    """Only offers generators."""

    generators: ClassVar[dict[str, type]] = {
        "toy": ToyGenerator,
        "verifying": VerifyingGenerator,
        "broken": BrokenGenerator,
        "particular": ParticularGenerator,
    }


@pytest.fixture(autouse=True)
def _never_asked() -> None:
    VerifyingGenerator.asked.clear()


def collection_of(folder: Path) -> dict[str, Any]:
    return dict(recorded_facts(folder)["collection"])


def test_episodes_are_recorded_each_cut_at_its_end() -> None:
    episodes = record(TOYS)
    assert len(episodes) == 23
    assert len({len(each) for each in episodes}) > 1
    for each in episodes:
        assert each.truncations.tolist() == [False] * (len(each) - 1) + [True]
        assert not each.terminations.any()
    flat = load_flat(DATASET)
    assert flat.num_rows == sum(map(len, episodes))
    assert len(flat.run_starts) == 24


def test_episodes_with_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EnvContractError, match=r"the reward of env step 1 .*: nan"):
        record(replace(TOYS, generator="broken"))


def test_what_is_stored_is_what_the_generator_made() -> None:
    collect(TOYS, progress=False)
    stored = minari.load_dataset(DATASET).storage
    facts = stored.get_episode_metadata(range(23))
    for each, episode in zip(facts, stored.get_episodes(range(23)), strict=True):
        made = ToyGenerator().record(int(each["seed"]))
        assert made is not None
        np.testing.assert_array_equal(episode["observations"], made.observations)
        np.testing.assert_array_equal(episode["actions"], made.actions)
        np.testing.assert_array_equal(episode["rewards"], made.rewards)


def test_failures_are_left_out_counted_and_made_up_for() -> None:
    folder = collect(
        replace(TOYS, demonstrator_options={"failing": 0.3}), progress=False
    )
    facts = collection_of(folder)
    assert recorded_facts(folder)["total_episodes"] == 23
    assert 2 <= facts["failures"] <= 25
    assert facts["options"] == {"failing": 0.3, "scale": 1.0}
    assert facts["verified"] is None


def test_a_generator_that_always_fails_is_given_up() -> None:
    with pytest.raises(DatasetError, match=r"failed 20 times in a row at episode 0"):
        collect(replace(TOYS, demonstrator_options={"failing": 1.0}), progress=False)


def test_what_a_generator_cannot_record_is_named_with_its_seed_and_options() -> None:
    reason = r"'particular' .* episode 0, seed (\d+): start \1 .*\{'failing': 0.0"
    with pytest.raises(DatasetError, match=reason):
        collect(replace(TOYS, generator="particular"), progress=False)


def test_interrupted_and_resumed_is_never_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = replace(TOYS, demonstrator_options={"failing": 0.3})
    folder = collect(replace(failing, dataset_id="test/whole-v0"), progress=False)
    save = ShardFolder.save

    def interrupted(self: ShardFolder, index: int, *shard: Any) -> None:
        if index == 2:
            raise KeyboardInterrupt
        save(self, index, *shard)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(failing, progress=False)
    resumed = record(failing)
    assert_same(resumed, record(replace(failing, dataset_id="test/again-v0")))
    again = collect(replace(failing, overwrite=True), progress=False)
    assert collection_of(again)["failures"] == collection_of(folder)["failures"]


def test_a_sample_is_verified_and_the_outcome_kept() -> None:
    settings = replace(TOYS, generator="verifying", dataset_id=None, num_episodes=61)
    folder = collect(settings, progress=False)
    assert folder.name == "own-name-v3"
    asked = VerifyingGenerator.asked
    assert len(set(asked)) == demonstrators.VERIFIED_EPISODES
    confirmed = sum(seed % 2 == 0 for seed in asked)
    assert collection_of(folder)["verified"] == {
        "episodes": 20,
        "confirmed": confirmed,
    }


def test_the_command_says_what_it_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = CollectCommand(
        env_id="Pendulum-v1",
        demonstrator=TOY,
        generator="verifying",
        num_episodes=5,
        num_workers=1,
    )
    assert collect_command(command) == 0
    told = capsys.readouterr().out
    assert "5 episodes" in told
    assert "0 failed attempts left out" in told
    assert "of 5 verified" in told


def test_settings_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps, action_noise apply to runs only"):
        collect(replace(TOYS, num_steps=100, action_noise=0.1))
    with pytest.raises(UnknownNameError, match=r"generator 'toi'.*'toy'"):
        collect(replace(TOYS, generator="toi"))
    with pytest.raises(ConfigError, match=r"no option 'fails'.*failing.*scale"):
        collect(replace(TOYS, demonstrator_options={"fails": 1.0}))
    with pytest.raises(ConfigError, match="num_episodes"):
        replace(TOYS, num_episodes=0)
    maze = replace(TOYS, env_id="diffuser_envs/Multi2D-UMaze-v1", demonstrator=EXPERT)
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(ConfigError, match="makes runs of many goals"):
        collect(maze)
    with pytest.raises(ConfigError, match="no generators of episodes"):
        collect(replace(maze, generator="kinematic"))


def test_shards_give_back_what_they_were_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [make_episode(rng.normal(size=(n + 1, 4))) for n in (3, 1, 6)]
    folder = ShardFolder(tmp_path / "work", {})
    folder.save(7, episodes, failures=2)
    found = folder.load(7)
    assert_same(found, episodes)
    assert [each.seed for each in found] == [each.seed for each in episodes]
    assert folder.facts(7)[1] == 2
