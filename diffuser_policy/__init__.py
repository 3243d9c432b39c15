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
    from diffuser_policy.columns.features import (
        Featurizer,
        make_featurizer,
        register_featurizer,
    )
    from diffuser_policy.columns.layout import TrajectoryLayout
    from diffuser_policy.columns.normalizers import (
        GaussianNormalizer,
        IdentityNormalizer,
        LimitsNormalizer,
    )
    from diffuser_policy.config import TrainConfig
    from diffuser_policy.data.collection import (
        CollectSettings,
        collect,
        collect_episodes,
    )
    from diffuser_policy.data.flat import FlatDataset
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.data.windows import WindowDataset
    from diffuser_policy.diffusion.conditions import Conditions
    from diffuser_policy.diffusion.denoiser import Denoiser
    from diffuser_policy.diffusion.guidance import Guidance
    from diffuser_policy.diffusion.sampler import (
        DDIMSampler,
        DDPMSampler,
        DPMSolverSampler,
        Sampler,
    )
    from diffuser_policy.diffusion.schedule import NoiseSchedule
    from diffuser_policy.errors import DiffuserPolicyError, GuideError
    from diffuser_policy.evaluation import Evaluation, evaluate
    from diffuser_policy.guides.guide import Guide, as_guide, cost_guide
    from diffuser_policy.guides.registry import make_guide, register_guide
    from diffuser_policy.guides.trajectory import Trajectory
    from diffuser_policy.networks.classifiers import PairClassifier, StateClassifier
    from diffuser_policy.networks.objects import ObjectTransformer
    from diffuser_policy.networks.time_to_goal import TimeToGoal
    from diffuser_policy.networks.unet import TemporalUNet
    from diffuser_policy.networks.value import ValueNetwork
    from diffuser_policy.planning.executors import (
        FeaturesExecutor,
        PlannedActions,
        PursuitExecutor,
        TrackingExecutor,
    )
    from diffuser_policy.planning.plan import Plan
    from diffuser_policy.planning.planner import Planner
    from diffuser_policy.policy import DiffuserPolicy
    from diffuser_policy.training.presets import preset
    from diffuser_policy.training.trainer import Trainer

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
    "Conditions": "diffusion.conditions",
    "DDIMSampler": "diffusion.sampler",
    "DDPMSampler": "diffusion.sampler",
    "DPMSolverSampler": "diffusion.sampler",
    "Denoiser": "diffusion.denoiser",
    "DiffuserPolicy": "policy",
    "DiffuserPolicyError": "errors",
    "Evaluation": "evaluation",
    "FeaturesExecutor": "planning.executors",
    "Featurizer": "columns.features",
    "FlatDataset": "data.flat",
    "GaussianNormalizer": "columns.normalizers",
    "Guidance": "diffusion.guidance",
    "Guide": "guides.guide",
    "GuideError": "errors",
    "IdentityNormalizer": "columns.normalizers",
    "LimitsNormalizer": "columns.normalizers",
    "NoiseSchedule": "diffusion.schedule",
    "ObjectTransformer": "networks.objects",
    "PairClassifier": "networks.classifiers",
    "Plan": "planning.plan",
    "PlannedActions": "planning.executors",
    "Planner": "planning.planner",
    "PursuitExecutor": "planning.executors",
    "Sampler": "diffusion.sampler",
    "StateClassifier": "networks.classifiers",
    "TemporalUNet": "networks.unet",
    "TimeToGoal": "networks.time_to_goal",
    "TrackingExecutor": "planning.executors",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "Trajectory": "guides.trajectory",
    "TrajectoryLayout": "columns.layout",
    "ValueNetwork": "networks.value",
    "WindowDataset": "data.windows",
    "as_guide": "guides.guide",
    "collect": "data.collection",
    "collect_episodes": "data.collection",
    "cost_guide": "guides.guide",
    "evaluate": "evaluation",
    "load_flat": "data.minari",
    "make_featurizer": "columns.features",
    "make_guide": "guides.registry",
    "preset": "training.presets",
    "register_featurizer": "columns.features",
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
