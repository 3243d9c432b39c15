"""Methods to compare with: offline RL, planning with models, online RL, demonstrators.

| module | holds |
|---|---|
| codec | environment units ↔ what networks of baselines see |
| transitions | batches of transitions; goals and rewards in hindsight |
| weights | algorithms' weights and moments in safetensors |
| d3rlpy_training | gradient steps with d3rlpy's algorithms, resumed after a kill |
| d3rlpy_methods | BC, BCQ, CQL, IQL, TD3+BC, AWAC, ReBRAC |
| decision_transformer | DT |
| online | SAC + HER of Stable-Baselines3 |
| shooting, objectives | MPPI and CEM |
| dynamics, diffuser_dynamics, planning_models | what they plan with |
| planning_methods | both together |
| values | whether critics say what can be true |
| diffuser, demonstrator | Diffuser itself, the experts that the data are from |
"""
