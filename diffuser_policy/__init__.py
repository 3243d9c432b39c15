"""Diffuser, planning with diffusion, as a policy for any Gymnasium loop.

    policy = DiffuserPolicy.from_pretrained("multi2d-large")
    action, state = policy.predict(observation)

The public names below are imported when they are first used, so that importing the
package, or asking the command line for help, does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuser_policy.classifier import StateClassifier
    from diffuser_policy.conditions import Conditions
    from diffuser_policy.config import TrainConfig
    from diffuser_policy.data.collection import (
        CollectSettings,
        collect,
        collect_episodes,
    )
    from diffuser_policy.data.flat import FlatDataset
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.data.windows import WindowDataset
    from diffuser_policy.denoiser import Denoiser
    from diffuser_policy.errors import DiffuserPolicyError, GuideError
    from diffuser_policy.evaluation import Evaluation, evaluate
    from diffuser_policy.executors import (
        FeaturesExecutor,
        PlannedActions,
        PursuitExecutor,
        TrackingExecutor,
    )
    from diffuser_policy.features import (
        Featurizer,
        make_featurizer,
        register_featurizer,
    )
    from diffuser_policy.guidance import Guidance
    from diffuser_policy.guides.guide import Guide, as_guide, cost_guide
    from diffuser_policy.guides.registry import make_guide, register_guide
    from diffuser_policy.guides.trajectory import Trajectory
    from diffuser_policy.layout import TrajectoryLayout
    from diffuser_policy.networks import TemporalUNet
    from diffuser_policy.normalizers import (
        GaussianNormalizer,
        IdentityNormalizer,
        LimitsNormalizer,
    )
    from diffuser_policy.objects import ObjectTransformer
    from diffuser_policy.pair_classifier import PairClassifier
    from diffuser_policy.plan import Plan
    from diffuser_policy.planner import Planner
    from diffuser_policy.policy import DiffuserPolicy
    from diffuser_policy.sampler import (
        DDIMSampler,
        DDPMSampler,
        DPMSolverSampler,
        Sampler,
    )
    from diffuser_policy.schedule import NoiseSchedule
    from diffuser_policy.time_to_goal import TimeToGoal
    from diffuser_policy.training.presets import preset
    from diffuser_policy.training.trainer import Trainer
    from diffuser_policy.value import ValueNetwork

__all__ = [
    "CollectSettings",
    "Conditions",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverSampler",
    "Denoiser",
    "DiffuserPolicy",
    "DiffuserPolicyError",
    "Evaluation",
    "FeaturesExecutor",
    "Featurizer",
    "FlatDataset",
    "GaussianNormalizer",
    "Guidance",
    "Guide",
    "GuideError",
    "IdentityNormalizer",
    "LimitsNormalizer",
    "NoiseSchedule",
    "ObjectTransformer",
    "PairClassifier",
    "Plan",
    "PlannedActions",
    "Planner",
    "PursuitExecutor",
    "Sampler",
    "StateClassifier",
    "TemporalUNet",
    "TimeToGoal",
    "TrackingExecutor",
    "TrainConfig",
    "Trainer",
    "Trajectory",
    "TrajectoryLayout",
    "ValueNetwork",
    "WindowDataset",
    "as_guide",
    "collect",
    "collect_episodes",
    "cost_guide",
    "evaluate",
    "load_flat",
    "make_featurizer",
    "make_guide",
    "preset",
    "register_featurizer",
    "register_guide",
]

_MODULES = {
    "CollectSettings": "data.collection",
    "Conditions": "conditions",
    "DDIMSampler": "sampler",
    "DDPMSampler": "sampler",
    "DPMSolverSampler": "sampler",
    "Denoiser": "denoiser",
    "DiffuserPolicy": "policy",
    "DiffuserPolicyError": "errors",
    "Evaluation": "evaluation",
    "FeaturesExecutor": "executors",
    "Featurizer": "features",
    "FlatDataset": "data.flat",
    "GaussianNormalizer": "normalizers",
    "Guidance": "guidance",
    "Guide": "guides.guide",
    "GuideError": "errors",
    "IdentityNormalizer": "normalizers",
    "LimitsNormalizer": "normalizers",
    "NoiseSchedule": "schedule",
    "ObjectTransformer": "objects",
    "PairClassifier": "pair_classifier",
    "Plan": "plan",
    "PlannedActions": "executors",
    "Planner": "planner",
    "PursuitExecutor": "executors",
    "Sampler": "sampler",
    "StateClassifier": "classifier",
    "TemporalUNet": "networks",
    "TimeToGoal": "time_to_goal",
    "TrackingExecutor": "executors",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "Trajectory": "guides.trajectory",
    "TrajectoryLayout": "layout",
    "ValueNetwork": "value",
    "WindowDataset": "data.windows",
    "as_guide": "guides.guide",
    "collect": "data.collection",
    "collect_episodes": "data.collection",
    "cost_guide": "guides.guide",
    "evaluate": "evaluation",
    "load_flat": "data.minari",
    "make_featurizer": "features",
    "make_guide": "guides.registry",
    "preset": "training.presets",
    "register_featurizer": "features",
    "register_guide": "guides.registry",
}


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
