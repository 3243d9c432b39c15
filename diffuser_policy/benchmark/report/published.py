"""Published figures: of other people's runs, on other data. Never merged with ours.

The papers' datasets were not available: D4RL's recipe generated the mazes' data here,
and our own demonstrator the blocks' data. A figure of a paper beside one of this
benchmark therefore does not compare methods; it shows what is usual.

Problems are named as `Problem.title`; figures are as printed, `±` included.
"""

from __future__ import annotations

from typing import NamedTuple

MAZE2D = ("Maze2D-UMaze", "Maze2D-Medium", "Maze2D-Large")
MULTI2D = ("Multi2D-UMaze", "Multi2D-Medium", "Multi2D-Large")
KUKA = (
    "KukaStack-Unconditional",
    "KukaStack-Conditional",
    "KukaStack-Rearrangement",
)
AVERAGE = "average"


class Published(NamedTuple):
    """A published table.

    Attributes:
        title: Title of the table.
        source: Who published it, and where.
        problems: Its rows, of one block, in order.
        rows: Figures as printed, by method: the problems, then their average.
        remark: What to know before comparing.
    """

    title: str
    source: str
    problems: tuple[str, ...]
    rows: dict[str, str]
    remark: str

    @property
    def figures(self) -> dict[str, dict[str, str]]:
        """Figures as printed, by method, and by problem or "average"."""
        names = (*self.problems, AVERAGE)
        return {
            method: dict(zip(names, text.split(" | "), strict=True))
            for method, text in self.rows.items()
        }


DIFFUSER = "Janner et al. (2022), Planning with Diffusion"
OTHER_DATA = (
    "Published by others on D4RL's data. The data here is generated anew by D4RL's "
    "recipe, in another version of the simulator."
)

PUBLISHED = (
    Published(
        title="Maze2D as published",
        source=f"{DIFFUSER}, table 1; MPPI: Chen et al. (2024), Simple Hierarchical "
        "Planning with Diffusion, table 1",
        problems=MAZE2D,
        rows={
            "MPPI": "33.2 | 10.2 | 5.1 | 16.2",
            "BCQ": "12.8 | 8.3 | 6.2 | 9.1",
            "CQL": "5.7 | 5.0 | 12.5 | 7.7",
            "IQL": "47.4 | 34.9 | 58.6 | 47.0",
            "Diffuser": "113.9 ± 3.1 | 121.5 ± 2.7 | 123.0 ± 6.4 | 119.5",
        },
        remark=f"{OTHER_DATA} The paper's baselines are weaker than tuned ones: see "
        "the next table.",
    ),
    Published(
        title="Maze2D: tuned baselines as published by CORL, last checkpoint",
        source="CORL (Tarasov et al., 2023), results of its repository; in parentheses "
        "its best checkpoint, chosen by evaluation, where it is given",
        problems=MAZE2D,
        rows={
            "BC": "0.4 | 0.8 | 2.3 | 1.2",
            "TD3+BC": "29.4 (99.3) | 59.5 (150.9) | 97.1 (197.6) | 62.0 (149.3)",
            "AWAC": "65.7 (137.0) | 84.6 (152.7) | 215.5 (227.3) | 121.9 (172.3)",
            "CQL": "−8.9 | 86.1 | 23.8 | 33.7 (126.1)",
            "IQL": "42.1 | 34.9 | 61.7 | 46.2 (112.0)",
            "ReBRAC": "106.9 (162.3) | 105.1 (150.1) | 78.3 (197.6) | 96.8 (170.0)",
            "SAC-N": "130.6 | 88.6 | 204.8 | 141.3",
            "DT": " |  |  | 28.5",
        },
        remark=f"{OTHER_DATA} Trained for a million gradient steps. A best checkpoint "
        "is chosen with the evaluation's own scores, so it is no estimate of what a "
        "user would get.",
    ),
    Published(
        title="Multi2D as published",
        source=f"{DIFFUSER}, table 1",
        problems=MULTI2D,
        rows={
            "IQL": "24.8 | 12.1 | 13.9 | 16.9",
            "Diffuser": "128.9 ± 1.8 | 127.2 ± 3.4 | 132.1 ± 5.8 | 129.4",
        },
        remark=OTHER_DATA,
    ),
    Published(
        title="Block stacking as published",
        source=f"{DIFFUSER}, table 3",
        problems=KUKA,
        rows={
            "BCQ": "0.0 | 0.0 | 0.0 | 0.0",
            "CQL": "24.4 | 0.0 | 0.0 | 8.9",
            "Diffuser": "58.7 ± 2.5 | 45.6 ± 3.1 | 58.9 ± 3.4 | 54.4",
        },
        remark="Published by others on demonstrations and in a simulation that were "
        "not released. Their score counts what ever held (compare the latched score), "
        "ours what holds in the end. CQL's average is printed as 8.9; its three "
        "figures average 8.1.",
    ),
)
