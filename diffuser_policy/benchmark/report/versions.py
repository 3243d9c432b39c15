"""Whether the results of a benchmark were made by the same versions."""

from __future__ import annotations

from collections.abc import Sequence

from diffuser_policy.benchmark.results import RECORDED, CellResult
from diffuser_policy.errors import ConfigError


def version_groups(results: Sequence[CellResult]) -> dict[str, dict[str, list[str]]]:
    """Return for each package its versions, each with the cells that it made."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for package, version in result.versions.items():
            cells = found.setdefault(package, {}).setdefault(str(version), [])
            cells.append(result.cell.id)
    return found


def check_versions(results: Sequence[CellResult], *, allow: bool = False) -> list[str]:
    """Return a sentence for each package of which several versions made the results.

    A package that one method needs, and that is missing where another method ran, is no
    difference.

    Args:
        results: Of a benchmark.
        allow: Accept them.

    Raises:
        ConfigError: There are such packages, and they were not accepted.
    """
    groups = version_groups(results)
    differing = [
        f"{package} "
        + " and ".join(
            f"{version} ({len(cells)} cells, such as {cells[0]})"
            for version, cells in sorted(groups[package].items())
        )
        for package in RECORDED
        if len(groups.get(package, {})) > 1
    ]
    if differing and not allow:
        raise ConfigError(
            f"The cells were made by different versions: {'; '.join(differing)}. "
            f"Expected one version of each. Run the cells of one of them again, in a "
            f"folder of their own, or report them all the same with --mixed-versions."
        )
    return differing
