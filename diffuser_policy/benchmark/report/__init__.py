"""Reports of benchmarks: Markdown with pictures beside it, and one HTML page.

    write_report("runs/maze")          # runs/maze/report/report.md and report.html
    print(compact_tables("runs/maze")) # tables for a README

| module | holds |
|---|---|
| study | results, learning curves and critics, in order, and what is missing |
| tables, scores | the facts as tables; `published.toml` has figures of papers |
| figures | pictures |
| page | Markdown and HTML from `templates/`, with the commands to run it again |
"""

from __future__ import annotations

from diffuser_policy.benchmark.report.page import Report, compact_tables, write_report
from diffuser_policy.benchmark.report.study import load_study

__all__ = ["Report", "compact_tables", "load_study", "write_report"]
