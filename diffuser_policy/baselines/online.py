"""SAC with hindsight goals, by Stable-Baselines3: the online reference of benchmarks.

It reads no data and learns in the environment instead, with one gradient step an env
step (Haarnoja et al. 2018; Andrychowicz et al. 2017). Stable-Baselines3 unpickles its
checkpoints, so they are made here, always between episodes: networks, optimizers and
the replay buffer in safetensors. Episode i draws from generators of `(seed, i)`, so a
training that was killed resumes to the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diffuser_policy.baselines.learning import load_parts, save_parts
from diffuser_policy.baselines.transitions import check_goals
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.build import num_parameters
from diffuser_policy.envs import Env
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import replaced_folder
from diffuser_policy.settings import positive
from diffuser_policy.spaces import action_box
from diffuser_policy.training.state import Parts

BUFFER_ROWS = 1_000_000
CHECKPOINT = "checkpoint"
WEIGHTS_FILE, REPLAY_FILE = "weights.safetensors", "replay.safetensors"
TABLES = ("actions", "rewards", "dones", "timeouts", "ep_start", "ep_length")
GOAL_TABLES = ("observations", "next_observations")
COUNTS = ("_n_updates", "_episode_num")


class SeededEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Resets every episode with a seed of its own; `episode` is the next one."""

    def __init__(self, env: Env, seed: int) -> None:
        super().__init__(env)
        self.seed, self.episode = seed, 0

    def reset(
        self,
        *,
        seed: int | None = None,  # noqa: ARG002 (episodes have their own)
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        number = episode_seed(self.seed, self.episode)
        self.episode += 1
        return self.env.reset(seed=number, options=options)


def _refuse(problem: Problem, settings: Mapping[str, Any]) -> None:
    """Refuse settings and environments with which the training would fail."""
    positive(SimpleNamespace(**settings), "width", "batch_size", "learning_rate")
    if not 0 <= settings["discount"] <= 1:
        raise ConfigError(f"discount must be in [0, 1], got {settings['discount']}.")
    for name in ("goals_per_row", "warm_up"):
        if settings[name] < 0:
            raise ConfigError(f"{name} must be 0 or more, got {settings[name]}.")
    with closing(problem.make_env()) as env:
        check_goals(env, "sac-her learns from goals in hindsight")
        action_box(env.action_space)


@register_method(
    "sac-her",
    label="SAC+HER",
    needs_dataset=False,
    modules={"stable_baselines3": "sb3"},
    num_steps=50_000,
    refuses=_refuse,
)
def sac_her(
    context: MethodContext,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    discount: float = 0.99,
    goals_per_row: int = 4,
    warm_up: int = 1000,
) -> Any:
    """Learn until the budget of env steps is used up, rounded up to an episode.

    Args:
        context: Of the method; its steps are env steps.
        width: Of the two hidden layers of actor and critics.
        batch_size: Rows of a gradient step.
        learning_rate: Of Adam, for actor, critics and temperature.
        discount: Per env step.
        goals_per_row: Goals in hindsight, per goal that was asked for.
        warm_up: Env steps of random actions before the first gradient step.

    Raises:
        CheckpointError: The checkpoint of a killed training cannot be read.
    """
    from stable_baselines3 import SAC, HerReplayBuffer

    torch.set_num_threads(1)
    env = SeededEpisodes(context.make_env(), context.seed)
    limit = (env.spec.max_episode_steps if env.spec else None) or 0
    agent = SAC(
        "MultiInputPolicy",
        env,
        policy_kwargs={"net_arch": [width, width]},
        batch_size=batch_size,
        learning_rate=learning_rate,
        gamma=discount,
        learning_starts=warm_up,
        buffer_size=min((context.max_steps or 0) + limit, BUFFER_ROWS),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": goals_per_row},
        train_freq=(1, "episode"),
        gradient_steps=-1,  # after an episode, as many as it had steps
        seed=context.seed,
        device="cpu",
    )
    learn(context, agent, env)
    env.close()
    context.facts |= {
        "num_steps": int(agent._n_updates),
        "num_env_steps": int(agent.num_timesteps),
        "num_parameters": num_parameters(agent.actor, agent.critic),
    }
    return agent


def learn(context: MethodContext, agent: Any, env: SeededEpisodes) -> None:
    """Learn episode by episode, from the checkpoint on if there is one."""
    folder = context.folder / CHECKPOINT
    if folder.is_dir():
        load_agent(agent, env, folder)
    context.forget_curve(agent.num_timesteps)
    while not context.finished(before := agent.num_timesteps):
        # What the episode draws, and the gradient steps after it: the library's
        # buffer and networks draw from global generators.
        number = episode_seed(context.seed, agent._episode_num)
        np.random.seed(number)  # noqa: NPY002
        torch.manual_seed(number)
        agent.action_space.seed(number)
        agent.learn(1, reset_num_timesteps=False, log_interval=None)  # an episode
        step = agent.num_timesteps
        if any(context.curve_due(each) for each in range(before + 1, step + 1)):
            context.curve(step, agent)
            save_agent(agent, folder)
        total = float(agent.ep_info_buffer[-1]["r"])
        context.progress(step, figures={"episode_return": total})
    save_agent(agent, folder)


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of an episode, in 0 … 2^32 - 1."""
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0])


def save_agent(agent: Any, folder: Path) -> None:
    """Save everything from which training resumes, between two episodes."""
    buffer = agent.replay_buffer
    rows = buffer.size()
    tables = {name: getattr(buffer, name)[:rows] for name in TABLES}
    for name in GOAL_TABLES:
        parts = getattr(buffer, name)
        tables |= {f"{name}/{key}": parts[key][:rows] for key in parts}
    numbers = {name: np.array(getattr(agent, name)) for name in COUNTS}
    numbers |= {name: np.array(getattr(buffer, name)) for name in ("pos", "full")}
    with replaced_folder(folder) as partial:
        parts = parts_of(agent)
        save_parts(partial / WEIGHTS_FILE, parts, step=agent.num_timesteps)
        save_file(tables | numbers, partial / REPLAY_FILE)


def load_agent(agent: Any, env: SeededEpisodes, folder: Path) -> None:
    """Bring a fresh agent, and its environment, to where a saved one was.

    Raises:
        CheckpointError: A file is damaged, or of other settings.
    """
    agent.num_timesteps = load_parts(folder / WEIGHTS_FILE, parts_of(agent))
    buffer, path = agent.replay_buffer, folder / REPLAY_FILE
    try:
        saved = load_file(path)
        for name in COUNTS:
            setattr(agent, name, int(saved.pop(name)))
        buffer.pos, buffer.full = int(saved.pop("pos")), bool(saved.pop("full"))
        for key, rows in saved.items():
            name, _, part = key.partition("/")
            table = getattr(buffer, name)
            (table[part] if part else table)[: len(rows)] = rows
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path} cannot be read, or is of other settings ({error}). Delete "
            f"{folder} to train again from the beginning."
        ) from error
    buffer._current_ep_start[:] = buffer.pos
    env.episode = agent._episode_num


def parts_of(agent: Any) -> Parts:
    """Return the modules and optimizers of a SAC agent by name."""
    # A tensor, but parts are modules: this one shares its memory.
    temperature = torch.nn.Parameter(agent.log_ent_coef)
    return {
        "policy": agent.policy,
        "actor_optimizer": agent.actor.optimizer,
        "critic_optimizer": agent.critic.optimizer,
        "temperature": torch.nn.ParameterDict({"log": temperature}),
        "temperature_optimizer": agent.ent_coef_optimizer,
    }
