"""Offline RL of the literature through d3rlpy, with the settings of each paper.

| method | paper | what is set here, and from where |
|---|---|---|
| bc | | mean squared error, Adam 1e-3 |
| bcq | Fujimoto et al. 2019 | 10 action samples, flexibility 0.05, λ 0.75, Adam 1e-3 |
| cql | Kumar et al. 2020 | 10 samples, weight 10, gap 5, actor 3e-5, critic 3e-4 |
| iql | Kostrikov et al. 2022 | expectile 0.7, temperature 3, Adam 3e-4 |
| td3-bc | Fujimoto & Gu 2021 | α 2.5, Adam 3e-4, delay 2 |
| awac | Nair et al. 2020 | λ 1, Adam 3e-4 |
| rebrac | Tarasov et al. 2023 | β 0.01 twice, layer norm in critics, Adam 1e-3 |

All see normalized observations and have γ 0.99, batches of 256 and two hidden layers.
d3rlpy's own defaults are batches of 100 for BCQ and of 1024 for AWAC and ReBRAC, and an
actor's β of 0.001; BCQ's paper has networks of 400 and 300 units, and its authors' code
compares 100 actions when it acts. CQL's values are those of CORL for D4RL's mazes.
`clip_values` (of BCQ and CQL) is of none of their papers: see `values`.
ReBRAC's paper tunes β, layers and learning rates for every dataset; its authors' values
for D4RL's maze2d are in `examples/benchmark_rebrac.toml`.
"""

from __future__ import annotations

from typing import Any

from diffuser_policy.baselines.d3rlpy_training import D3rlpyPolicy, train_d3rlpy
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.training import Training
from diffuser_policy.errors import require_extra

MODULES = {"d3rlpy": "baselines"}
NUM_STEPS = 50_000  # where nobody sets a budget


def _algos() -> Any:
    return require_extra("d3rlpy", "baselines").algos


def _networks(
    width: int, *names: str, num_layers: int = 2, layer_norm: bool = False
) -> dict[str, Any]:
    """Return encoders under the names that an algorithm has for them."""
    models = require_extra("d3rlpy.models", "baselines")
    encoder = models.VectorEncoderFactory(
        [width] * num_layers, use_layer_norm=layer_norm
    )
    return {f"{name}_encoder_factory": encoder for name in names}


@register_method("bc", label="BC", modules=MODULES, num_steps=NUM_STEPS)
def bc(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    goal_discount: float = 0.99,
) -> D3rlpyPolicy:
    """Clone the behavior; with goals, the behavior that led to them."""
    config = _algos().BCConfig(
        batch_size=batch_size,
        learning_rate=learning_rate,
        encoder_factory=_networks(width, "actor")["actor_encoder_factory"],
    )
    return train_d3rlpy(training, config, goal_discount=goal_discount)


@register_method("bcq", label="BCQ", modules=MODULES, num_steps=NUM_STEPS)
def bcq(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    discount: float = 0.99,
    goal_discount: float = 0.99,
    num_action_samples: int = 10,
    flexibility: float = 0.05,
    clip_values: bool = False,
) -> D3rlpyPolicy:
    """Choose among actions that a generative model of the data proposes."""
    config = _algos().BCQConfig(
        batch_size=batch_size,
        actor_learning_rate=learning_rate,
        critic_learning_rate=learning_rate,
        imitator_learning_rate=learning_rate,
        gamma=discount,
        n_action_samples=num_action_samples,
        action_flexibility=flexibility,
        **_networks(width, "actor", "critic", "imitator"),
    )
    return train_d3rlpy(
        training, config, goal_discount=goal_discount, clip_values=clip_values
    )


@register_method("cql", label="CQL", modules=MODULES, num_steps=NUM_STEPS)
def cql(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    actor_learning_rate: float = 3e-5,
    critic_learning_rate: float = 3e-4,
    discount: float = 0.99,
    goal_discount: float = 0.99,
    num_action_samples: int = 10,
    conservative_weight: float = 10.0,
    conservative_learning_rate: float = 3e-4,
    conservative_gap: float = 5.0,
    clip_values: bool = False,
) -> D3rlpyPolicy:
    """Learn values that are low where there are no data.

    How strongly is for the paper's Lagrangian, which lowers the weight while values
    elsewhere are by less than the gap above those of the data. Without a learning
    rate the weight is fixed; with one of 5, values kept falling on U-Maze.
    """
    config = _algos().CQLConfig(
        batch_size=batch_size,
        actor_learning_rate=actor_learning_rate,
        critic_learning_rate=critic_learning_rate,
        temp_learning_rate=actor_learning_rate,
        gamma=discount,
        n_action_samples=num_action_samples,
        conservative_weight=conservative_weight,
        alpha_learning_rate=conservative_learning_rate,
        alpha_threshold=conservative_gap,
        **_networks(width, "actor", "critic"),
    )
    return train_d3rlpy(
        training, config, goal_discount=goal_discount, clip_values=clip_values
    )


@register_method("iql", label="IQL", modules=MODULES, num_steps=NUM_STEPS)
def iql(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    goal_discount: float = 0.99,
    expectile: float = 0.7,
    temperature: float = 3.0,
) -> D3rlpyPolicy:
    """Learn values from actions of the data alone, and weigh the actions by them."""
    config = _algos().IQLConfig(
        batch_size=batch_size,
        actor_learning_rate=learning_rate,
        critic_learning_rate=learning_rate,
        gamma=discount,
        expectile=expectile,
        weight_temp=temperature,
        **_networks(width, "actor", "critic", "value"),
    )
    return train_d3rlpy(training, config, goal_discount=goal_discount)


@register_method("td3-bc", label="TD3+BC", modules=MODULES, num_steps=NUM_STEPS)
def td3_bc(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    goal_discount: float = 0.99,
    alpha: float = 2.5,
) -> D3rlpyPolicy:
    """Maximize values and stay close to the actions of the data."""
    config = _algos().TD3PlusBCConfig(
        batch_size=batch_size,
        actor_learning_rate=learning_rate,
        critic_learning_rate=learning_rate,
        gamma=discount,
        alpha=alpha,
        **_networks(width, "actor", "critic"),
    )
    return train_d3rlpy(training, config, goal_discount=goal_discount)


@register_method("awac", label="AWAC", modules=MODULES, num_steps=NUM_STEPS)
def awac(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    goal_discount: float = 0.99,
    temperature: float = 1.0,
) -> D3rlpyPolicy:
    """Weigh the actions of the data by their advantages."""
    config = _algos().AWACConfig(
        batch_size=batch_size,
        actor_learning_rate=learning_rate,
        critic_learning_rate=learning_rate,
        gamma=discount,
        lam=temperature,
        **_networks(width, "actor", "critic"),
    )
    return train_d3rlpy(training, config, goal_discount=goal_discount)


@register_method("rebrac", label="ReBRAC", modules=MODULES, num_steps=NUM_STEPS)
def rebrac(
    training: Training,
    *,
    width: int = 256,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    discount: float = 0.99,
    goal_discount: float = 0.99,
    actor_beta: float = 0.01,
    critic_beta: float = 0.01,
    num_layers: int = 2,
) -> D3rlpyPolicy:
    """TD3+BC that is also held back where values are bootstrapped."""
    networks = _networks(width, "actor", num_layers=num_layers)
    networks |= _networks(width, "critic", num_layers=num_layers, layer_norm=True)
    config = _algos().ReBRACConfig(
        batch_size=batch_size,
        actor_learning_rate=learning_rate,
        critic_learning_rate=learning_rate,
        gamma=discount,
        actor_beta=actor_beta,
        critic_beta=critic_beta,
        **networks,
    )
    return train_d3rlpy(training, config, goal_discount=goal_discount)
