"""Methods of your own in a benchmark: a script, an SB3 agent, an algorithm of d3rlpy.

    python examples/06_your_own_methods.py
    python examples/06_your_own_methods.py --num-data-steps 200000 \
        --num-gradient-steps 20000 --num-env-steps 50000 --episodes 100

A method is a function of a `MethodContext` (the problem, its data, a folder for
checkpoints) that returns a policy: any object with Stable-Baselines3's `predict`, or an
algorithm of d3rlpy. Its keyword-only arguments are its settings. The benchmark finds it
as `file.py:function` (or as `module:function`, or by a name in the entry-point group
`diffuser_policy.methods` of an installed package), runs it in its own process, and
evaluates it on the same episodes as all other methods:

    diffuser-policy benchmark run tiny \
        --methods examples/06_your_own_methods.py:straight diffuser

It takes about a minute on two cores, leaves nothing behind, and ends with a table of
the methods and the demonstrator in the smallest maze. So small a budget teaches an
agent little. It needs the extras `maze`, `data`, `plot` and `sb3`. Without the extra
`baselines`, it leaves out the d3rlpy method.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from diffuser_policy.benchmark import MethodContext, register_method

ENV_ID = "diffuser_envs/Multi2D-UMaze-v1"
DATASET = "examples/umaze-v0"
SUITE = """
name = "guests"
num_steps = {num_gradient_steps}

[[problems]]
env = "{env}"
dataset = "{dataset}"
goals = "hindsight"

[evaluation]
seeds = [0]
episodes = {episodes}
curve_episodes = 5
curve_points = 1

[methods]
demonstrator = {{}}
"{file}:straight" = {{ damping = 0.5 }}
"{file}:online" = {{ num_env_steps = {num_env_steps} }}
"""


class Straight:
    """Pushes straight towards the goal, walls or no walls: the ten-line policy."""

    def __init__(self, damping: float) -> None:
        self.damping = damping

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002 (it draws nothing)
    ) -> tuple[np.ndarray, Any]:
        """Return actions `[n, 2]` for the observations of n environments."""
        offset = observation["desired_goal"] - observation["achieved_goal"]
        velocity = observation["observation"][..., 2:]
        action = 10 * (offset - self.damping * velocity)
        return action.clip(-1, 1).astype(np.float32), state


@register_method("straight", needs_dataset=False)
def straight(context: MethodContext, *, damping: float = 0.5) -> Straight:  # noqa: ARG001
    """Nothing to train."""
    return Straight(damping)


@register_method("online", needs_dataset=False)
def online(context: MethodContext, *, num_env_steps: int = 50_000) -> Any:
    """An agent that learns in the environment; its settings are up to you."""
    from stable_baselines3 import SAC

    agent = SAC(
        "MultiInputPolicy",
        context.make_env(),
        policy_kwargs={"net_arch": [64, 64]},
        train_freq=4,
        seed=context.seed,
        device="cpu",
    )
    context.facts |= {"num_env_steps": num_env_steps}
    return agent.learn(num_env_steps)


@register_method("imitation", modules={"d3rlpy": "baselines"})
def imitation(context: MethodContext, *, width: int = 64) -> Any:
    """An algorithm of d3rlpy that sees the observation, then the goal."""
    import d3rlpy

    fields, starts = context.dataset.fields, context.dataset.run_starts
    ends = np.zeros(context.dataset.num_rows, np.float32)
    ends[starts[1:] - 1] = 1  # a run ends, but nothing terminates
    data = d3rlpy.dataset.MDPDataset(
        observations=np.hstack([fields["observation"], fields["desired_goal"]]),
        actions=fields["action"],
        rewards=fields["reward"],
        terminals=np.zeros_like(ends),
        timeouts=ends,
    )
    algorithm = d3rlpy.algos.BCConfig(
        encoder_factory=d3rlpy.models.VectorEncoderFactory([width, width]),
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
    ).create()
    num_steps = context.num_steps or 10_000
    algorithm.fit(
        data,
        n_steps=num_steps,
        n_steps_per_epoch=num_steps,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    context.facts |= {"num_steps": num_steps}
    return algorithm


def main(
    *,
    num_data_steps: int = 20_000,
    num_gradient_steps: int = 2000,
    num_env_steps: int = 3000,
    episodes: int = 20,
    num_workers: int = 2,
) -> None:
    """Record data, run the benchmark, print the table.

    Args:
        num_data_steps: Env steps to record.
        num_gradient_steps: Of methods that learn from the data.
        num_env_steps: Of the agent that learns in the environment.
        episodes: Of each evaluation.
        num_workers: Methods at a time.
    """
    from diffuser_policy import CollectSettings, collect
    from diffuser_policy.benchmark.cells import load_results
    from diffuser_policy.benchmark.report import compact_tables
    from diffuser_policy.cli import main as diffuser_policy

    file = Path(__file__).resolve()
    suite = SUITE.format(
        env=ENV_ID,
        dataset=DATASET,
        file=file,
        num_gradient_steps=num_gradient_steps,
        num_env_steps=num_env_steps,
        episodes=episodes,
    )
    if importlib.util.find_spec("d3rlpy"):
        suite += f'"{file}:imitation" = {{}}\n'
    else:
        print('without d3rlpy: pip install ".[baselines]"')
    with tempfile.TemporaryDirectory() as folder:
        # Instead of ~/.minari/datasets and ~/.cache/diffuser-policy, for cells as well.
        os.environ |= {"MINARI_DATASETS_PATH": folder, "DIFFUSER_POLICY_CACHE": folder}
        collect(
            CollectSettings(
                env_id=ENV_ID,
                dataset_id=DATASET,
                num_steps=num_data_steps,
                run_length=5000,
                num_workers=num_workers,
            )
        )
        path, output = Path(folder, "guests.toml"), Path(folder, "benchmark")
        path.write_text(suite, encoding="utf-8")
        command = ["benchmark", "run", str(path), "--output", str(output)]
        if diffuser_policy([*command, "--workers", str(num_workers)]):
            raise SystemExit("a method failed, see above")
        print(compact_tables(output, published=()))
        results = load_results(output)
    print(f"{len(results)} methods, the same {episodes} episodes for each")


if __name__ == "__main__":
    tyro.cli(main)
