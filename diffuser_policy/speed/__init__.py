"""How fast a planner plans, beside the paper's setting and beside what is possible.

    measured = measure_speed(policy, "diffuser_envs/Multi2D-Large-v1")

| module | holds |
|---|---|
| timing | interleaved measurements, and the floor that operations set |
| cases | what is measured |
| report | tables and JSON |
"""

from diffuser_policy.speed.measurement import SpeedMeasurement, measure_speed

__all__ = ["SpeedMeasurement", "measure_speed"]
