"""How fast a planner plans, beside the paper's setting and beside what is possible.

    measured = measure_speed(policy, "diffuser_envs/Multi2D-Large-v1")

| module | holds |
|---|---|
| floor | multiplications and additions of a network, and what a core does of them |
| timing | interleaved measurements, so that a busy machine slows all cases alike |
| cases | what is measured |
| report | tables and JSON |
"""

from diffuser_policy.speed.measurement import SpeedMeasurement, measure_speed

__all__ = ["SpeedMeasurement", "measure_speed"]
