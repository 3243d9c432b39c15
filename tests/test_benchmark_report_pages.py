"""Benchmark reports as files: Markdown with pictures, one HTML page, the command."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

image = pytest.importorskip("PIL.Image", reason="needs the extra 'plot'")
pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from matplotlib.figure import Figure  # noqa: E402

from diffuser_policy.benchmark.report import write_report  # noqa: E402
from diffuser_policy.benchmark.report.figures import (  # noqa: E402
    CURVES,
    WIDTH,
    Panel,
    Picture,
    styles,
)
from diffuser_policy.benchmark.report.page import (  # noqa: E402
    environment,
    escaped,
)
from diffuser_policy.benchmark.report.tables import Cell, Table  # noqa: E402
from diffuser_policy.cli import main  # noqa: E402
from tests.benchmark_report_helpers import (  # noqa: E402
    KUKA,
    MAZES,
    VERSIONS,
    cell_of,
    result_of,
    write_cell,
    write_result,
)

VOID = {"meta", "img", "link", "br", "hr", "input"}
HOSTILE = '<script>alert("1")</script> | **bold** `code` [a](http://x) & \\ \n# no'


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def picture(path: Path, size: tuple[int, int] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", size, "red").save(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    for env in MAZES[:2]:
        for method, mean in (("diffuser", 150.0), ("iql", 60.0), ("bc", 20.0)):
            write_result(folder, result_of(env, method, mean=mean, episodes=5))
    write_result(folder, result_of(MAZES[0], "mine.py:evil", episodes=5))
    pictures = folder / "cells" / "maze2d-umaze--diffuser--seed-0" / "pictures"
    picture(pictures / "plan_1.png")
    picture(pictures / "plan_2.png")
    (pictures / "plan_2.json").write_text(json.dumps({"caption": HOSTILE}))
    (pictures / "broken.png").write_text("no picture")
    lost = folder / "cells" / "maze2d-medium--bc--seed-0"
    (lost / "result.json").unlink()
    (lost / "error.json").write_text(json.dumps({"type": "X", "message": HOSTILE}))
    write_report(folder)
    return folder


def test_the_page_is_well_formed_and_needs_nothing_else(written: Path) -> None:
    text = (written / "report" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png")), value
    assert "url(" not in text
    assert "@import" not in text


def test_every_picture_is_inside_and_can_be_read(written: Path) -> None:
    text = (written / "report" / "report.html").read_text(encoding="utf-8")
    pictures = Page(text).all("img")
    # Scores, episodes, curves and differences of two problems; two plans.
    assert len(pictures) == 4 * 2 + 2
    for attributes in pictures:
        head, _, data = (attributes["src"] or "").partition(",")
        assert head == "data:image/png;base64"
        found = image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        found.load()
        assert found.size == (
            int(attributes["width"] or 0),
            int(attributes["height"] or 0),
        )
        assert attributes["alt"]


def test_links_of_the_page_lead_to_headings(written: Path) -> None:
    page = Page((written / "report" / "report.html").read_text(encoding="utf-8"))
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(anchors)) == len(anchors)
    links = {attributes["href"] for attributes in page.all("a")}
    assert links == {f"#{anchor}" for anchor in anchors}
    assert {"scores", "figures", "plans", "warnings"} <= set(anchors)


def test_what_results_say_stays_text(written: Path) -> None:
    page = Page((written / "report" / "report.html").read_text(encoding="utf-8"))
    assert " ".join(HOSTILE.split()) in " ".join(page.text.split())
    markdown = (written / "report" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"\\<", "", markdown)
    rows = [line for line in markdown.splitlines() if "maze2d-medium--bc" in line]
    [row] = [row for row in rows if "alert" in row]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4  # three columns


def test_files_with_code_are_not_imported_for_their_label(written: Path) -> None:
    markdown = (written / "report" / "report.md").read_text(encoding="utf-8")
    assert "| evil |" in markdown


def test_pictures_of_markdown_are_beside_it(written: Path) -> None:
    place = written / "report"
    markdown = (place / "report.md").read_text(encoding="utf-8")
    sources = re.findall(r'<img src="([^"]+)"', markdown)
    assert len(sources) == 4 * 2 + 2
    for source in sources:
        assert not source.startswith(("/", ".."))
        with image.open(place / source) as found:
            assert found.format == "PNG"


def test_a_report_in_the_benchmarks_folder_shows_plans_where_they_are(
    written: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "benchmark"
    shutil.copytree(written / "cells", folder / "cells")
    report = write_report(folder, folder)
    sources = re.findall(r'<img src="([^"]+)"', report.markdown.read_text())
    plans = [source for source in sources if source.startswith("cells/")]
    assert len(plans) == 2
    assert all((folder / source).is_file() for source in sources)
    assert not [*(folder / "figures").glob("*plan*")]


def test_reports_of_the_same_results_are_equal(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(MAZES[0], "iql", episodes=5))
    one, other = (write_report(tmp_path, tmp_path / name) for name in ("a", "b"))
    assert one.html.read_bytes() == other.html.read_bytes()


def test_the_command_writes_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "runs", tmp_path / "out"
    for method in ("diffuser", "bc"):
        write_result(folder, result_of(KUKA[0], method, suite="kuka", episodes=3))
    lost = write_cell(folder, cell_of(KUKA[0], "cql", 0, suite="kuka"))
    (lost / "error.json").write_text(json.dumps({"type": "X", "message": "no luck"}))
    status = main(["benchmark", "report", str(folder), "--output", str(output)])
    shown = capsys.readouterr().out
    assert status == 0
    assert "| KukaStack-Unconditional |" in shown
    assert f"No result: {lost.name} (failed: X: no luck)" in shown
    assert f"Wrote {output / 'report.html'}" in shown
    assert (output / "report.md").is_file()
    assert not (folder / "report").exists()


def test_the_command_refuses_mixed_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path, result_of(MAZES[0], "iql", episodes=2))
    other = VERSIONS | {"mujoco": "9.9.9"}
    write_result(tmp_path, result_of(MAZES[0], "bc", episodes=2, versions=other))
    assert main(["benchmark", "report", str(tmp_path)]) == 2
    assert "mujoco 3.1.6" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "report").exists()
    assert main(["benchmark", "report", str(tmp_path), "--mixed-versions"]) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "mujoco 3.1.6 (1 cell), 9.9.9 (1 cell)" in page


def test_both_forms_escape_all_that_a_report_can_hold(tmp_path: Path) -> None:
    cells = (Cell(HOSTILE, (HOSTILE,)), Cell(HOSTILE, strong=True))
    table = Table(title=HOSTILE, header=(HOSTILE,) * 2, rows=(cells,), note=HOSTILE)
    picture(tmp_path / "a.png")
    panel = Panel(tmp_path / "a.png", HOSTILE, HOSTILE)
    context = {
        "title": HOSTILE,
        "sections": {HOSTILE: [table, Picture(HOSTILE, (panel,), HOSTILE)]},
        "commands": ["echo 'a' > b"],
        "report_command": "report",
    }
    templates = environment(tmp_path)
    page = Page(templates.get_template("report.html.j2").render(context))
    assert not page.all("script")
    assert page.text.count('alert("1")') > 10
    assert "echo 'a' > b" in page.text
    markdown = templates.get_template("report.md.j2").render(context)
    (image_line,) = [line for line in markdown.splitlines() if "<img" in line]
    [shown] = Page(image_line).all("img")
    assert shown["alt"] == " ".join(HOSTILE.split())
    markdown = markdown.replace(image_line, "")
    assert not re.search(r"(?<!\\)<script", markdown)
    assert not re.search(r"(?<!\\)\*\*bold", markdown)
    assert "](http" not in markdown.replace("\\](", "")
    assert "echo 'a' > b" in markdown


@pytest.mark.parametrize(
    "text", ["12.5 [1.0, 2.0]", "-0.7 [-3.5, 2.0]", "time_to_goal", "99 % [98, 100]"]
)
def test_figures_need_no_escapes(text: str) -> None:
    assert escaped(text) == text


def test_methods_are_told_apart() -> None:
    names = ["diffuser", "bcq", "cql", "iql", "td3-bc", "rebrac", "bc", "demonstrator"]
    found = styles([*names, "mine", "awac", "dt", "sac-her"])
    assert len(set(found.values())) == len(found)
    assert found["iql"] == styles(["iql"])["iql"]


def test_many_methods_of_others_have_lines_of_their_own() -> None:
    found = styles([f"mine-{i}" for i in range(24)])
    assert len(set(found.values())) == 24


@pytest.mark.parametrize(
    "labels",
    [
        [f"Method-{i}" for i in range(10, 14)],
        [f"CEM (learned, {i})" for i in range(12)],
        [f"Planner {i} of another package with a long name" for i in range(3)],
        [f"A{i}" for i in range(40)],
    ],
    ids=["short", "long", "very long", "many"],
)
def test_the_legend_of_curves_fits_and_leaves_the_axes_their_height(
    labels: list[str],
) -> None:
    row = SimpleNamespace(measure="score", title="Line", name="line")
    ends = {"mean": 5.0, "low": 4.0, "high": 6.0}
    curve = [{"step": step, "score": ends} for step in (0, 1000)]
    entries = [
        SimpleNamespace(method=label, row=row, results=[SimpleNamespace(curve=curve)])
        for label in labels
    ]
    study = SimpleNamespace(
        methods=tuple(labels), entries_of=lambda _: entries, label=str
    )
    assert CURVES.height is not None
    figure = Figure((WIDTH, CURVES.height), layout="constrained")
    ax = figure.subplots()
    assert CURVES.draw(ax, study, row)  # type: ignore[arg-type]
    figure.draw_without_rendering()
    [legend] = figure.legends
    shown = legend.get_window_extent()
    assert 0 <= shown.x0 < shown.x1 <= figure.bbox.width
    assert 0 <= shown.y0 < shown.y1 < ax.get_window_extent().y0
    assert len(legend.get_texts()) == len(labels)
    assert ax.get_window_extent().height / figure.dpi > 2.3
