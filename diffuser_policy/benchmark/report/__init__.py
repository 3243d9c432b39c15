"""Reports of benchmarks: Markdown with pictures beside it, and one HTML page.

    write_report("runs/maze")          # runs/maze/report/report.md and report.html
    print(compact_tables("runs/maze")) # tables for a README

| module | holds |
|---|---|
| study | the results of a folder in order, and what is missing |
| versions | whether they belong together |
| estimates | means, differences and rates with intervals |
| tables, facts, curves | what is shown |
| published | figures of papers, kept apart |
| figures, palette, plans | pictures |
| summary, wording | sentences, numbers, commands |
| document, contents | the report before it is Markdown or HTML |
| markdown, html | its two forms |
"""

from __future__ import annotations

from diffuser_policy.benchmark.report.study import load_study
from diffuser_policy.benchmark.report.writing import (
    Report,
    compact_tables,
    write_report,
)

__all__ = ["Report", "compact_tables", "load_study", "write_report"]
