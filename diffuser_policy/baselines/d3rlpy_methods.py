"""Offline RL of the literature through d3rlpy, with the settings of each paper.

| method | paper |
|---|---|
| bc | |
| bcq | Fujimoto et al. 2019 |
| cql | Kumar et al. 2020 |
| iql | Kostrikov et al. 2022 |
| td3-bc | Fujimoto & Gu 2021 |
| awac | Nair et al. 2020 |
| rebrac | Tarasov et al. 2023 |

All use Adam and see normalized observations. d3rlpy's own defaults are batches of 100
for BCQ and of 1024 for AWAC and ReBRAC, and an actor's β of 0.001; BCQ's paper has
networks of 400 and 300 units, and its authors' code compares 100 actions when it acts.
CQL's values are those of CORL for D4RL's mazes. ReBRAC's paper tunes β, layers and
learning rates for every dataset; its authors' values for D4RL's maze2d are in
`examples/benchmark_rebrac.toml`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffuser_policy.baselines.d3rlpy_training import D3rlpyPolicy, train_d3rlpy
from diffuser_policy.baselines.families import family_method
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.errors import require_extra

MODULES = {"d3rlpy": "baselines"}
NUM_STEPS = 50_000  # where nobody sets a budget
# What all have: units of two hidden layers, transitions of a gradient step, and the
# discount of goals in hindsight (`transitions`).
COMMON = {"width": 256, "batch_size": 256, "goal_discount": 0.99}
DISCOUNT = (0.99, "gamma")
BOTH_RATES = "actor_learning_rate", "critic_learning_rate"


def _method(
    name: str,
    label: str,
    algorithm: str,
    purpose: str,
    *,
    networks: Sequence[str] = ("actor_", "critic_"),
    normed: str | None = None,
    **settings: tuple[Any, ...],
) -> Callable[..., D3rlpyPolicy]:
    """Register an algorithm of d3rlpy.

    Args:
        name: Of the method.
        label: Its name in tables.
        algorithm: Its configuration in `d3rlpy.algos`.
        purpose: A sentence on what it does.
        networks: What the configuration puts before `encoder_factory` for each network.
        normed: The one of these networks that has layer norm.
        **settings: The default of each setting, then what the configuration calls it.
    """

    def train(
        context: MethodContext,
        *,
        width: int,
        batch_size: int,
        goal_discount: float,
        num_layers: int = 2,
        **given: Any,
    ) -> D3rlpyPolicy:
        factory = require_extra("d3rlpy.models", "baselines").VectorEncoderFactory
        chosen = {
            f"{network}encoder_factory": factory(
                [width] * num_layers, use_layer_norm=network == normed
            )
            for network in networks
        }
        chosen |= {
            known: value for key, value in given.items() for known in settings[key][1:]
        }
        make = getattr(require_extra("d3rlpy", "baselines").algos, algorithm)
        config = make(batch_size=batch_size, **chosen)
        return train_d3rlpy(context, config, goal_discount=goal_discount)

    return family_method(
        train,
        name,
        purpose,
        settings=COMMON | {key: entry[0] for key, entry in settings.items()},
        label=label,
        modules=MODULES,
        num_steps=NUM_STEPS,
    )


bc = _method(
    "bc",
    "BC",
    "BCConfig",
    "Clone the behavior; with goals, the behavior that led to them.",
    networks=("",),
    learning_rate=(1e-3, "learning_rate"),
)
bcq = _method(
    "bcq",
    "BCQ",
    "BCQConfig",
    "Choose among actions that a generative model of the data proposes.",
    networks=("actor_", "critic_", "imitator_"),
    learning_rate=(1e-3, *BOTH_RATES, "imitator_learning_rate"),
    discount=DISCOUNT,
    num_action_samples=(10, "n_action_samples"),
    flexibility=(0.05, "action_flexibility"),
)
# How strongly is for the paper's Lagrangian, which lowers the weight while values
# elsewhere are by less than the gap above those of the data. Without a learning rate
# the weight is fixed; with one of 5, values kept falling on U-Maze.
cql = _method(
    "cql",
    "CQL",
    "CQLConfig",
    "Learn values that are low where there are no data.",
    actor_learning_rate=(3e-5, "actor_learning_rate", "temp_learning_rate"),
    critic_learning_rate=(3e-4, "critic_learning_rate"),
    discount=DISCOUNT,
    num_action_samples=(10, "n_action_samples"),
    conservative_weight=(10.0, "conservative_weight"),
    conservative_learning_rate=(3e-4, "alpha_learning_rate"),
    conservative_gap=(5.0, "alpha_threshold"),
)
iql = _method(
    "iql",
    "IQL",
    "IQLConfig",
    "Learn values from actions of the data alone, and weigh the actions by them.",
    networks=("actor_", "critic_", "value_"),
    learning_rate=(3e-4, *BOTH_RATES),
    discount=DISCOUNT,
    expectile=(0.7, "expectile"),
    temperature=(3.0, "weight_temp"),
)
td3_bc = _method(
    "td3-bc",
    "TD3+BC",
    "TD3PlusBCConfig",
    "Maximize values and stay close to the actions of the data.",
    learning_rate=(3e-4, *BOTH_RATES),
    discount=DISCOUNT,
    alpha=(2.5, "alpha"),
)
awac = _method(
    "awac",
    "AWAC",
    "AWACConfig",
    "Weigh the actions of the data by their advantages.",
    learning_rate=(3e-4, *BOTH_RATES),
    discount=DISCOUNT,
    temperature=(1.0, "lam"),
)
rebrac = _method(
    "rebrac",
    "ReBRAC",
    "ReBRACConfig",
    "TD3+BC that is also held back where values are bootstrapped.",
    normed="critic_",
    learning_rate=(1e-3, *BOTH_RATES),
    discount=DISCOUNT,
    actor_beta=(0.01, "actor_beta"),
    critic_beta=(0.01, "critic_beta"),
    num_layers=(2,),
)
