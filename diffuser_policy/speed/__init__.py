"""Planning speed, compared with the paper's setting and the least possible time.

    measured = measure_speed(policy, "diffuser_envs/Multi2D-Large-v1")

| module | holds |
|---|---|
| cases | what is measured, and the operations that it takes |
| libraries | the same plans by other libraries |
| measurement | interleaved timing, and the floor that operations set |
| report | tables, a figure and JSON |
"""

from diffuser_policy.speed.measurement import SpeedMeasurement, measure_speed

__all__ = ["SpeedMeasurement", "measure_speed"]
