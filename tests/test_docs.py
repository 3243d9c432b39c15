"""The documentation keeps its promises: its code runs, what it lists is complete."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import diffuser_envs.errors
import diffuser_policy.errors
from diffuser_policy import config
from diffuser_policy.cli import main
from tests.documentation_helpers import (
    ROOT,
    blocks,
    commands,
    run_commands,
    run_python,
)

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
NAMES = [str(path.relative_to(DOCS)) for path in PAGES]
WITH_PYTHON = [n for n in NAMES if blocks(DOCS / n, "python")]
WITH_COMMANDS = [n for n in NAMES if commands(DOCS / n, "diffuser-policy")]
# What a saved planner consists of, and settings that are made of others.
NO_SETTINGS = {
    "PolicyConfig",
    "CompanionTrainConfig",
    "ValueTrainConfig",
    "CriticTrainConfig",
    "ClassifierTrainConfig",
}


def extension(name: str) -> ModuleType:
    """Import one of the documentation's own extensions of Sphinx."""
    pytest.importorskip("sphinx", reason="needs the extra 'docs'")
    spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs_extra(page: str) -> None:
    """Skip a page whose environments are not installed."""
    modules = {"block_stacking": "pybullet", "ogbench": "ogbench", "export": "onnx"}
    if module := modules.get(page.removesuffix(".md")):
        pytest.importorskip(module, reason=f"{page} needs an extra")


def directives(page: Path, name: str, argument: str = "") -> list[str]:
    """Return the contents of a page's directives of a name."""
    pattern = rf"^```{{{name}}} ?{argument}\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with datasets of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DIFFUSER_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page: str, in_a_folder: Path) -> None:
    """All blocks, one after the other; then some pages have something to check."""
    needs_extra(page)
    names = run_python(DOCS / page, in_a_folder)
    if check := CHECKS.get(page):
        check(names)


def the_picture_is_drawn_and_the_point_passed(names: dict[str, Any]) -> None:
    assert Path("plan.png").stat().st_size > 10_000
    goal = names["observation"]["desired_goal"]
    assert names["path"][-1, :2] == pytest.approx(goal, abs=1e-3)
    near, far = (
        np.linalg.norm(path[:, :2] - [-1.5, 0.5], axis=1).min()
        for path in (names["way"], names["path"])
    )
    assert near < 0.1 < 0.3 < far


def the_way_is_kept_in_the_south(names: dict[str, Any]) -> None:
    north = [
        policy.plan(names["observation"]).path()[:, 1].max()
        for policy in (names["policy"], names["policy"].with_guide(names["keep_south"]))
    ]
    assert north[0] > 0.9
    assert north[1] < 0.8


def candidates_differ(names: dict[str, Any]) -> None:
    values = names["chosen"].plan(names["observation"]).values[0]
    assert len(values) == 16
    assert values.min() < values.max()


def episodes_earn_a_return(names: dict[str, Any]) -> None:
    assert names["mean_return"] > 100
    assert len(names["rules"]) == 16


def the_tool_stays_low(names: dict[str, Any]) -> None:
    assert names["action"].shape == (8,)
    free = names["policy"].plan(names["observation"]).path()[1:, 2].max()
    assert names["height"] < 0.22 < 0.3 < free


CHECKS = {
    "first_plan.md": the_picture_is_drawn_and_the_point_passed,
    "guides/use.md": candidates_differ,
    "guides/write.md": the_way_is_kept_in_the_south,
    "loops.md": episodes_earn_a_return,
    "block_stacking.md": the_tool_stays_low,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_run(page: str, in_a_folder: Path) -> None:
    """In the order of the page, with small numbers."""
    needs_extra(page)
    run_commands(DOCS / page)
    assert in_a_folder.is_dir()


def test_every_page_is_in_the_contents() -> None:
    """A page that no table of contents names is found by nobody."""
    named = set()
    for path in PAGES:
        for block in directives(path, "toctree"):
            entries = [line for line in block.splitlines() if line[:1] not in ("", ":")]
            named |= {(path.parent / f"{entry}.md").resolve() for entry in entries}
    assert {path.resolve() for path in PAGES} - named == {(DOCS / "index.md").resolve()}


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    """Pages, examples, pictures and files that are included exist."""
    path = DOCS / page
    text = path.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += re.findall(r"^```{(?:literal)?include} (\S+)$", text, re.MULTILINE)
    assert "[](" not in text  # nothing to click on where nobody builds the pages
    for target in targets:
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in NAMES:
        for [target, *_] in commands(DOCS / name, "make"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# --- what is made of the code ---------------------------------------------------------


def test_every_setting_is_listed() -> None:
    page = (DOCS / "settings.md").read_text()
    listed = set(re.findall(r"^```{settings} (\w+)", page, re.MULTILINE))
    assert listed == {
        name
        for name, value in vars(config).items()
        if dataclasses.is_dataclass(value)
        and value.__module__ == config.__name__
        and name not in NO_SETTINGS
    }


def test_the_page_of_settings_has_the_defaults_of_other_trainings() -> None:
    """All in which any of them differs from the training of a planner."""
    page = (DOCS / "settings.md").read_text()
    [names] = re.findall(r"^\| \| (`num_steps`.*) \|$", page, re.MULTILINE)
    columns = names.replace("`", "").split(" | ")
    usual = vars(config.OptimizationConfig())
    for name in ("ValueTrainConfig", "CriticTrainConfig", "ClassifierTrainConfig"):
        [row] = re.findall(rf"^\| `{name}` \| (.*) \|$", page, re.MULTILINE)
        own = vars(getattr(config, name).optimization)
        assert row.split(" | ") == [str(own[column]) for column in columns]
        assert {key for key in own if own[key] != usual[key]} <= set(columns)


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "python.md").read_text()
    named = re.findall(r"{py:obj}`(\w+) <", page)
    assert sorted(named) == sorted(diffuser_policy.__all__)
    assert f"exports {len(named)} names" in page


def test_settings_have_options_defaults_and_a_docstring() -> None:
    source = (ROOT / "diffuser_policy" / "config.py").read_text()
    page = extension("generated").settings_page(source, "WindowConfig", "--window.")
    assert "`horizon` = `128`\n: Env steps of the longest plan" in page
    assert r'*"none" \| "repeat"* · `--window.padding`' in page
    assert "*int* · `--window.horizon`" in page
    assert page.count("\n: ") == len(dataclasses.fields(config.WindowConfig))
    bare = "class Bare:\n    size: int = 1\n    other: int = 2\n"
    with pytest.raises(LookupError, match="size has no docstring"):
        extension("generated").settings_page(bare, "Bare")


def test_settings_say_what_they_need() -> None:
    """From the tables by which settings without an effect are refused."""
    generated = extension("generated")
    source = (ROOT / "diffuser_policy" / "config.py").read_text()
    for name in ("PlannerConfig", "ExecutionConfig", "NetworkConfig"):
        needs = generated.needs_of(name)
        own = [field.name for field in dataclasses.fields(getattr(config, name))]
        page = generated.settings_page(source, name, "--", needs=needs)
        assert page.count("· only with") == len(set(own) & needs.keys())
    needs = {"tempo": ("executor", ("path",)), "lookahead": ("guide", ())}
    page = generated.settings_page(source, "ExecutionConfig", "--", needs=needs)
    assert '· `--tempo` · only with `executor="path"`' in page
    assert "· `--lookahead` · only with a guide" in page


def test_options_of_settings_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is an option of the command that trains the network in question."""
    generated = extension("generated")
    source = (ROOT / "diffuser_policy" / "config.py").read_text()
    commands = {
        "ValueConfig": ["train-value"],
        "CriticConfig": ["train-critic"],
        "ClassifierConfig": ["train-classifier"],
    }
    page = (DOCS / "settings.md").read_text()
    for name, prefix in re.findall(r"^```{settings} (\w+) (\S+)", page, re.MULTILINE):
        with pytest.raises(SystemExit):
            main([*commands.get(name, ["train", "multi2d-umaze"]), "--help"])
        offered = capsys.readouterr().out
        options = generated.settings_page(source, name, prefix)
        for option in re.findall(r"`(--[\w.-]+)`", options):
            assert option in offered, option


@pytest.mark.parametrize("module", [diffuser_policy.errors, diffuser_envs.errors])
def test_every_error_has_advice(module: ModuleType) -> None:
    [block] = directives(DOCS / "errors.md", "errors", module.__name__)
    advised = [line.partition(":")[0] for line in block.splitlines()]
    assert advised == [name for name, _ in extension("generated").errors_of(module)]


def test_the_picture_of_the_chain_names_sub_packages() -> None:
    """Every small word below a name is where that name lives."""
    drawn = (DOCS / "images" / "chain.svg").read_text()
    small = set(re.findall(r'font-size="12" fill="#555">([a-z, ]+)</text>', drawn))
    homes = small - {"your loop", "start, goal"}
    words = {word for text in homes for word in text.split(", ")}
    assert len(words) >= 5
    for word in words:
        assert (ROOT / "diffuser_policy" / word).is_dir(), word


def test_docstrings_are_translated() -> None:
    """Formulas, tables, code and names, as reStructuredText has them."""
    translate = extension("markdown_docstrings").translate
    text = translate(
        "A |x|, `code`, `TemporalUNet`, $x_i$s:\n\n$$a\nb$$\n\nthen\n\n"
        "| a | b |\n|---|---|\n| $c$ | `d` |\n\n    value = 1\n\nArgs:\n    x: `[n]`"
    )
    assert text.splitlines() == [
        "A \\|x\\|, ``code``, :py:obj:`TemporalUNet <.TemporalUNet>`, :math:`x_i`\\ s:",
        "",
        "",
        "",
        ".. math::",
        "",
        "   a",
        "   b",
        "",
        "",
        "",
        "then",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - a",
        "     - b",
        "   * - :math:`c`",
        "     - ``d``",
        "",
        ".. code-block:: python",
        "",
        "   value = 1",
        "",
        "Args:",
        "    x: ``[n]``",
    ]
