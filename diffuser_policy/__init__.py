"""Diffuser, planning with diffusion, as a policy for any Gymnasium loop.

    policy = DiffuserPolicy.from_pretrained("multi2d-large")
    action, state = policy.predict(observation)

A public name is imported when it is first used, so that neither importing the package
nor asking the command line for help waits for torch. Everything else is imported from
its module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table below, for type checkers
    from diffuser_policy.columns.features import Featurizer as Featurizer
    from diffuser_policy.columns.features import (
        register_featurizer as register_featurizer,
    )
    from diffuser_policy.columns.layout import TrajectoryLayout as TrajectoryLayout
    from diffuser_policy.config import CollectSettings as CollectSettings
    from diffuser_policy.config import TrainConfig as TrainConfig
    from diffuser_policy.data.collection import collect as collect
    from diffuser_policy.data.collection import collect_episodes as collect_episodes
    from diffuser_policy.data.flat import FlatDataset as FlatDataset
    from diffuser_policy.data.minari import load_flat as load_flat
    from diffuser_policy.diffusion.sampler import Sampler as Sampler
    from diffuser_policy.errors import DiffuserPolicyError as DiffuserPolicyError
    from diffuser_policy.errors import GuideError as GuideError
    from diffuser_policy.evaluation import Evaluation as Evaluation
    from diffuser_policy.evaluation import evaluate as evaluate
    from diffuser_policy.guides.guide import Guide as Guide
    from diffuser_policy.guides.guide import as_guide as as_guide
    from diffuser_policy.guides.guide import cost_guide as cost_guide
    from diffuser_policy.guides.registry import make_guide as make_guide
    from diffuser_policy.guides.registry import register_guide as register_guide
    from diffuser_policy.guides.trajectory import Trajectory as Trajectory
    from diffuser_policy.planning.plan import Plan as Plan
    from diffuser_policy.planning.planner import Planner as Planner
    from diffuser_policy.policy import DiffuserPolicy as DiffuserPolicy
    from diffuser_policy.training.presets import preset as preset
    from diffuser_policy.training.trainer import Trainer as Trainer

_MODULES = {
    "CollectSettings": "data.collection",
    "DiffuserPolicy": "policy",
    "DiffuserPolicyError": "errors",
    "Evaluation": "evaluation",
    "Featurizer": "columns.features",
    "FlatDataset": "data.flat",
    "Guide": "guides.guide",
    "GuideError": "errors",
    "Plan": "planning.plan",
    "Planner": "planning.planner",
    "Sampler": "diffusion.sampler",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "Trajectory": "guides.trajectory",
    "TrajectoryLayout": "columns.layout",
    "as_guide": "guides.guide",
    "collect": "data.collection",
    "collect_episodes": "data.collection",
    "cost_guide": "guides.guide",
    "evaluate": "evaluation",
    "load_flat": "data.minari",
    "make_guide": "guides.registry",
    "preset": "training.presets",
    "register_featurizer": "columns.features",
    "register_guide": "guides.registry",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("diffuser-policy")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__, "__version__"})
