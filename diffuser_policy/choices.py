"""Every name that a setting accepts, spelled only here.

The settings (`diffuser_policy.config`), the command line and the components annotate
with these types. A table that maps the names to classes or functions is complete: a
test compares it with the type.
"""

from __future__ import annotations

from typing import Literal

NormalizerName = Literal["limits", "gaussian", "identity"]
Padding = Literal["none", "repeat"]
HindsightGoal = Literal["none", "goal", "observation"]

Architecture = Literal["unet", "mlp", "transformer", "objects"]
PredictionTarget = Literal["clean", "noise", "velocity"]
Pooling = Literal["mean", "flatten"]
ClassifierArchitecture = Literal["mlp", "pairs"]
Acceleration = Literal["auto", "off", "fused", "compile", "cuda-graphs"]

SamplerName = Literal["ddim", "ddpm", "dpm"]
Spacing = Literal["linspace", "trailing", "leading", "quadratic", "log-snr"]
Placement = Literal["clean", "mean", "noisy"]

RankingName = Literal[
    "first", "smoothness", "time_to_goal", "feasibility", "guide", "sum", "critic"
]
HorizonChoice = Literal["fixed", "shrinking", "predicted"]
ExecutorName = Literal[
    "tracking", "pursuit", "path", "actions", "inverse-dynamics", "features"
]

LearningRateSchedule = Literal["cosine", "constant"]

EngineName = Literal["process", "submitit", "ray"]
Goals = Literal["none", "hindsight"]

RUNS = "runs"  # folder of the trainings that name none
GOAL_KEYS = ("achieved_goal", "desired_goal")
GOAL_PARTS = ("observation", *GOAL_KEYS)  # of a goal environment's observations
"""Where observations have goals if nothing else is said (Gymnasium-Robotics)."""
