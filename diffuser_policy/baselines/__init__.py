"""Methods to compare with: offline RL, planning with models, online RL, demonstrators.

| module | holds |
|---|---|
| transitions | batches of transitions in the units of networks; goals in hindsight |
| learning | what learning methods share: families, training, checkpoints |
| d3rlpy_methods | BC, BCQ, CQL, IQL, TD3+BC, AWAC, ReBRAC |
| decision_transformer | DT |
| online | SAC + HER of Stable-Baselines3 |
| shooting | MPPI and CEM, and the objectives that they maximize |
| dynamics | the models that they plan with |
| planning_methods | both together, and random actions |
| diffuser, demonstrator | Diffuser itself, the experts that recorded the data |
"""
