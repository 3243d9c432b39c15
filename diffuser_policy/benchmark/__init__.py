"""Methods side by side: the same data, seeds and episodes, in one loop.

    Suite → Cell → Method(MethodContext) → policy → evaluate → result.json → report

| module | holds |
|---|---|
| problem | an environment, the data to learn from, and which rewards and goals count |
| methods | methods by name, and how users add theirs |
| cells | a cell, its evaluation, its folder and its result |
| context | what a method is given to train with |
| suites | lists of cells by name |
| runner | the checks before a run, the run, and its display |
| engines | processes, on this machine or on others, and how they end |
| cell_process | a cell as a process of its own |
| report | tables, figures, pages |
"""

from __future__ import annotations

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem

__all__ = ["MethodContext", "Problem", "register_method"]
