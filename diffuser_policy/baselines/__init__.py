"""Methods to compare with: offline RL, planning with models, online RL, demonstrators.

| module | holds |
|---|---|
| codec | environment units ↔ the inputs and actions of networks |
| transitions | batches of transitions; goals and rewards in hindsight |
| weights | algorithms' weights and moments in safetensors |
| values | whether the values of critics are possible |
| families | methods that share settings |
| d3rlpy_training | gradient steps with d3rlpy's algorithms, resumed after a kill |
| d3rlpy_methods | BC, BCQ, CQL, IQL, TD3+BC, AWAC, ReBRAC |
| decision_transformer | DT |
| online | SAC + HER of Stable-Baselines3 |
| shooting, objectives | MPPI and CEM |
| dynamics, diffuser_dynamics, planning_models | the models that they plan with |
| planning_methods | both together |
| diffuser, demonstrator | Diffuser itself, the experts that the data are from |
"""
