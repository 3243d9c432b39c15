"""`diffuser-policy train`: presets and overrides, resuming, interrupts, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers

from diffuser_policy.checkpoint import read_planner
from diffuser_policy.cli import main
from diffuser_policy.cli.train import PresetSettings, TrainSettings
from diffuser_policy.cli.training import evaluate_command
from diffuser_policy.config import InverseDynamicsConfig, TrainConfig, ValueConfig
from diffuser_policy.data import minari
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.guides.guide import described
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.presets import PRESETS, preset
from diffuser_policy.training.trainer import Trainer
from tests.point_env import POINT, PointEnv, Wander
from tests.training_helpers import press_ctrl_c_in_the_third_step

DATASET = "test/point-v0"
MAZE = "diffuser_envs/Multi2D-UMaze-v1"
SMALL = (
    *("--dataset", DATASET, "--device", "cpu", "--save-interval", "2"),
    *("--num-steps", "6", "--batch-size", "4", "--window.horizon", "16"),
    *("--network.dim", "8", "--network.multipliers", "1", "2"),
    *("--network.num-denoising-steps", "8", "--execution.position-gain", "10"),
)
Capture = pytest.CaptureFixture[str]


class Limited(PointEnv):
    """Ends its own episodes."""

    def step(self, action: np.ndarray) -> Any:
        self.num_steps += 1
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, self.num_steps == 40, info

    def reset(self, **arguments: Any) -> Any:
        self.num_steps = 0
        return super().reset(**arguments)


@pytest.fixture(scope="module", autouse=True)
def _dataset() -> None:
    env = Limited()
    collect_episodes(
        env,
        Wander(),
        num_episodes=3,
        dataset_id=DATASET,
        overwrite=True,
        progress=False,
    )
    env.close()


def losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of_preset(*arguments: str) -> TrainConfig:
    settings = TrainSettings.parse(list(arguments))
    assert isinstance(settings, PresetSettings)
    return settings.config()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_defaults(name: str) -> None:
    assert of_preset(name) == preset(name)


def test_every_setting_of_a_preset_can_be_changed() -> None:
    settings = TrainSettings.parse(
        [
            *("multi2d-large", "--num-steps", "7", "--window.horizon", "240"),
            *("--planner.num-sampling-steps", "None", "--time-to-goal.width", "8"),
            *("--seed", "5", "--dataset", "my/data-v0", "--window.actions"),
        ]
    )
    assert isinstance(settings, PresetSettings)
    config, original = settings.config(), preset("multi2d-large")
    assert (config.dataset, config.seed) == ("my/data-v0", 5)
    assert config.optimization.num_steps == 7
    assert config.optimization.batch_size == original.optimization.batch_size
    assert (config.window.horizon, config.window.actions) == (240, True)
    assert config.window.stride == original.window.stride
    assert config.planner.num_sampling_steps is None
    assert config.time_to_goal is not None
    assert config.time_to_goal.width == 8
    assert settings.folder() == Path("runs/multi2d-large")


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ("--planner.sampler ddpm", None),
        ("--planner.sampler ddpm --planner.num-sampling-steps 2", 2),
        ("--planner.sampler ddpm --planner.num-sampling-steps 7", 7),
        ("--planner.sampler dpm", 2),
    ],
)
def test_ddpm_in_place_of_a_presets_sampler_takes_all_denoising_steps(
    options: str, num_steps: int | None
) -> None:
    assert preset("multi2d-large").planner.num_sampling_steps == 2
    for words in (f"multi2d-large {options}", f"{options} multi2d-large"):
        assert of_preset(*words.split()).planner.num_sampling_steps == num_steps


@pytest.mark.parametrize(
    "words",
    ["--dry-run multi2d-umaze", "multi2d-umaze --dry_run --device cpu --dry-run"],
)
def test_a_dry_run_repeats_the_command_that_trains(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(minari, "load_flat", lambda *_, **__: toy_dataset())
    more = "--window.horizon 24 --window.min-horizon 24 --output 'a run'"
    assert main(["train", *shlex.split(f"{words} {more}")]) == 0
    typed = words.replace("--dry-run", "").replace("--dry_run", "").split()
    command = " ".join(["diffuser-policy train", *typed, more])
    assert f"To train it: {command}\n" in capsys.readouterr().out


def test_networks_beside_the_denoiser_are_trained_on_request() -> None:
    declined = of_preset("multi2d-umaze", "--no-time-to-goal")
    assert declined.time_to_goal is None
    asked = of_preset("multi2d-umaze", "--value", "--inverse-dynamics")
    assert asked.value == ValueConfig()
    assert asked.inverse_dynamics == InverseDynamicsConfig()
    wide = of_preset(
        "multi2d-umaze", "--inverse-dynamics", "--inverse-dynamics.width", "8"
    )
    assert wide.inverse_dynamics == InverseDynamicsConfig(width=8)
    with pytest.raises(ConfigError, match="no effect without --inverse-dynamics"):
        of_preset("multi2d-umaze", "--inverse-dynamics.width", "8")


def test_a_guide_that_is_given_replaces_the_presets() -> None:
    assert of_preset("kuka-stack").guide == ("stack-task",)
    assert of_preset("kuka-stack", "--guide", "none").guide == ("none",)
    both = of_preset("kuka-stack", "--guide", "place", "--guide", "2*contact")
    assert both.guide == ("place", "2*contact")


def test_a_preset_may_stand_behind_options() -> None:
    name = "multi2d-umaze"
    first = TrainSettings.parse([name, "--dataset", "my/data-v0", "--seed", "1"])
    assert (
        TrainSettings.parse(["--dataset", "my/data-v0", "--seed", "1", name]) == first
    )
    assert (
        TrainSettings.parse(["--seed", "1", name, "--dataset", "my/data-v0"]) == first
    )
    assert of_preset("--seed", "0", name) == preset(name)


def test_two_presets_are_one_too_many(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        TrainSettings.parse(["multi2d-umaze", "multi2d-large"])
    assert "multi2d-large" in capsys.readouterr().err


def test_unknown_presets_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'multi2d-large'"):
        TrainSettings.parse(["multi2d-lage"])
    with pytest.raises(UnknownNameError, match="Did you mean 'multi2d-large'"):
        TrainSettings.parse(["--seed", "1", "multi2d-lage"])
    with pytest.raises(UnknownNameError, match="named by --dataset my/data-v0"):
        TrainSettings.parse(["my/data-v0"])


def test_nothing_to_train_on_is_explained() -> None:
    with pytest.raises(ConfigError, match="Presets: multi2d-umaze"):
        TrainSettings().check()


def test_training_saves_a_planner_and_resumes(tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "a run"
    arguments = ["train", *SMALL, "--output", str(output)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "6 gradient steps in" in shown
    assert f"diffuser-policy evaluate '{output}'" in shown
    config, _ = read_planner(output)
    assert config.provenance["steps"] == 6
    assert config.execution.position_gain == 10
    assert [entry["step"] for entry in losses(output)] == [2, 4, 6]
    assert main(arguments) == 0
    assert "all 6 gradient steps are done already" in capsys.readouterr().out


def test_a_guide_without_an_effect_is_refused_before_training(tmp_path: Path) -> None:
    flat = toy_dataset(goals=False)
    config = TrainConfig.for_dataset(
        flat, window={"horizon": 1}, guide=("keep-out:center=1,1;radius=1",)
    )
    with pytest.raises(ConfigError, match="The guide KeepOut has no effect"):
        Trainer(config, flat, tmp_path)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--critic"], "Train the planner with --window.actions"),
        (["--guide", "action-effort"], "Unknown trajectory column 'action' (asked for"),
    ],
)
def test_what_needs_planned_actions_is_refused_before_training(
    option: list[str], message: str, more: list[str], tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["train", *SMALL, *option, *more, "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (["--guide", "2*goal-distance:pull=3", "--value"], "2 * GoalDistance(pull=3"),
        (["--guide", "value", "--value"], "LearnedValue"),
        (["--value"], None),
        (["--value", "--planner.ranking", "guide"], "LearnedValue"),
        ([], None),
    ],
)
def test_a_guide_is_saved_with_the_planner(
    options: list[str], saved: str | None, tmp_path: Path
) -> None:
    assert main(["train", *SMALL, *options, "--output", str(tmp_path)]) == 0
    guide = DiffuserPolicy.from_pretrained(tmp_path).guide
    formula = None if guide is None else described(guide)
    assert formula == saved or (formula and saved and saved in formula)


@pytest.mark.parametrize(
    ("recorded", "named"),
    [
        ({"env_id": POINT}, ""),
        ({}, " --env MODULE:FUNCTION"),
        ({"env_id": "mine/Own-v0"}, " --env MODULE:mine/Own-v0"),
        ({"env_id": "Own-v0"}, " --env MODULE:Own-v0"),
        ({"env_id": "Pendulum-v7"}, ""),  # the environment has another version here
        ({"wrapper": "NormalizeObservation"}, " --env MODULE:FUNCTION"),
        ({"wrapper": "RecordEpisodeStatistics"}, ""),
    ],
)
def test_the_command_that_follows_names_the_environment_if_it_has_to(
    recorded: dict[str, Any], named: str, tmp_path: Path
) -> None:
    facts = {k: v for k, v in toy_dataset().metadata.items() if k != "env_id"}
    if "wrapper" in recorded:
        env = getattr(wrappers, recorded["wrapper"])(gym.make("Pendulum-v1"))
        recorded = {"env_id": "Pendulum-v1", "env_spec": env.spec.to_json()}
        env.close()
    flat = dataclasses.replace(toy_dataset(), metadata=facts | recorded)
    trainer = Trainer(toy_config(), flat, tmp_path / "run")
    command = evaluate_command(trainer)
    run = shlex.quote(str(tmp_path / "run"))
    assert command == f"diffuser-policy evaluate {run}{named}"


def test_a_log_gets_a_line_at_every_save(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["train", *SMALL, "--output", str(tmp_path), "--tensorboard"]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line, entry in zip(lines, losses(tmp_path), strict=True):
        step = entry.pop("step")
        means = ", ".join(f"{name} {mean:.5f}" for name, mean in entry.items())
        begin = re.escape(f"gradient step {step} of 6: {means}; ")
        assert re.fullmatch(rf"{begin}\d:\d\d:\d\d left", line)


def test_a_terminal_gets_no_lines_beside_the_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["train", *SMALL, "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "gradient step" not in shown


def test_interrupted_training_saves_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = ["train", *SMALL, "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        press_ctrl_c_in_the_third_step(Trainer, patch)
        assert main(arguments) == 130
    assert "gradient step 3 is saved" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "resuming at gradient step 3 of 6" in capsys.readouterr().out
    assert main(["train", *SMALL, "--output", str(tmp_path / "whole")]) == 0
    resumed, whole = (
        read_planner(tmp_path / name)[1].state_dict() for name in ("run", "whole")
    )
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_interrupt_before_the_first_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def twice(_: Trainer) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_descend", twice)
    assert main(["train", *SMALL, "--output", str(tmp_path)]) == 130
    assert "stopped before anything was saved" in capsys.readouterr().err


def test_goals_are_read_from_other_keys(tmp_path: Path, capsys: Capture) -> None:
    names = {"observation": "state", "achieved_goal": "place", "desired_goal": "target"}

    def other() -> Any:
        env = Limited()
        parts: Any = env.observation_space
        renamed = gym.spaces.Dict({names[key]: parts[key] for key in parts})
        return gym.wrappers.TransformObservation(
            env, lambda seen: {names[key]: seen[key] for key in seen}, renamed
        )

    name, env = "test/renamed-v0", other()
    collect_episodes(
        env, Wander(), num_episodes=2, dataset_id=name, overwrite=True, progress=False
    )
    train = ["train", *SMALL[:-2], "--dataset", name, "--output", str(tmp_path)]
    assert main(["train", "--dataset", name, "--dry-run"]) == 0
    hint = "If two of place, state, target are, name them (--goal-keys"
    assert hint in capsys.readouterr().out
    assert main([*train, "--goal-keys", "target", "place"]) == 2
    assert "they seem to be exchanged" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert main([*train, "--goal-keys", "place", "target"]) == 0
    config, _ = read_planner(tmp_path)
    assert config.spaces.parts.goal_keys == ("place", "target")
    assert config.spaces.goal_columns == (0, 1)
    policy = DiffuserPolicy.from_pretrained(tmp_path)
    [record] = evaluate(policy, other, episodes=1, progress=False).episodes
    seen, _ = env.reset(seed=0)
    assert record.start == tuple(seen["place"])
    assert record.goal == tuple(seen["target"])


def test_goal_keys_that_are_not_there_are_refused(
    tmp_path: Path, capsys: Capture
) -> None:
    keys = ("--goal-keys", "position", "target")
    assert main(["train", *SMALL, *keys, "--output", str(tmp_path / "none")]) != 0
    told = capsys.readouterr().err
    assert "no 'position' and no 'target'" in told
    assert "achieved_goal, desired_goal, observation" in told
    assert not (tmp_path / "none").exists()


def test_losses_are_logged_for_tensorboard(tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "--output", str(tmp_path), "--tensorboard"]
    assert main(arguments) == 0
    [events] = (tmp_path / "training" / "tensorboard").iterdir()
    assert b"loss/denoiser" in events.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "test/pint-v0"], "No dataset 'test/pint-v0'"),
        (["--dataset", "test/pint-v0", "--tensorboard"], "No dataset 'test/pint-v0'"),
        (["--save-interval", "0", "--tensorboard"], "must be at least 1"),
        (["--device", "gpu"], "There is no device 'gpu'"),
        (["--window.horizon", "64", "--window.padding", "none"], "has 40 steps"),
        (["--window.horizon", "17"], "multiple"),
        (
            ["--planner.horizon", "predicted", "--no-time-to-goal"],
            "train with --time-to-goal",
        ),
        (
            ["--execution.executor", "actions"],
            "position_gain has no effect with executor='actions'",
        ),
        (["--execution.tempo", "0.5"], "tempo has no effect with executor='pursuit'"),
        (["--network.depth", "2"], "depth has no effect with architecture='unet'"),
        (
            ["--window.horizon", "1", "--planner.warm-start", "0.5"],
            "warm_start has no effect where plans are a single action",
        ),
        (["--guide", "stay-far"], "Unknown guide 'stay-far'"),
        (["--guide", "goal-distance:x=1"], "goal-distance"),
        (
            ["--window.horizon", "1", "--execution.replan-interval", "4"],
            "replan_interval has no effect where plans are a single action",
        ),
        (
            ["--window.horizon", "1", "--execution.replan-deviation", "0.5"],
            "replan_deviation has no effect where plans are a single action",
        ),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, *arguments, "--output", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_other_settings_are_refused_by_a_started_run(
    tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["train", *SMALL, "--output", str(tmp_path)]
    assert main(arguments) == 0
    before = sorted(tmp_path.rglob("*"))
    assert main([*arguments, "--seed", "1"]) == 2
    assert "seed: 0 → 1" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("env_id", "is_noted"), [(MAZE, False), (POINT, True)])
def test_data_of_another_environment_than_the_preset_s_are_noted(
    env_id: str, is_noted: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    toy = toy_dataset()
    facts = {**toy.metadata, "env_id": env_id, "dataset_id": "mine/own-v0"}
    flat = FlatDataset(toy.fields, toy.run_starts, facts)
    monkeypatch.setattr(minari, "load_flat", lambda *_, **__: flat)
    words = ["train", "multi2d-umaze", "--dataset", "mine/own-v0", "--dry-run"]
    shorter = ["--window.horizon", "24", "--window.min-horizon", "24"]
    assert main([*words, *shorter]) == 0
    noted = f"note: the preset multi2d-umaze is meant for data of {MAZE}, and this data"
    assert (noted in capsys.readouterr().err) == is_noted
