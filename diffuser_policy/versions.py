"""Which versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata

PACKAGES = (
    "diffuser-policy",
    "gymnasium",
    "gymnasium-robotics",
    "minari",
    "mujoco",
    "numpy",
    "torch",
)
SIMULATORS = ("gymnasium", "gymnasium-robotics", "mujoco", "ogbench", "pybullet")
RECORDERS = ("diffuser-policy", "numpy", *SIMULATORS)  # what recorded data depend on


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed.

    Args:
        *packages: Names of distributions; by default all that results depend on.
    """
    found = {}
    for name in packages or PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
