"""Methods side by side: the same data, seeds and episodes, in one loop.

    Suite → Cell → Method(Training) → policy → evaluate → result.json → report

| module | holds |
|---|---|
| problem | an environment, the data to learn from, and what of the data is seen |
| methods | methods by name, and how users add theirs |
| training | what a method is given |
| cells | a cell, and the folder that it leaves its results in |
| cell_process | a cell as a process of its own |
| pictures | of plans |
| results | results that are read again |
| suites | lists of cells by name |
| preflight | what is checked before a run |
| engines, runner | who runs them, and where |
| lifeline | processes that end with the one that started them |
| progress | what is seen of a run |
| report | tables, figures, pages |
"""

from __future__ import annotations

from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.training import Training

__all__ = ["Problem", "Training", "register_method"]
