"""Things found by name: the same rules for guides, featurizers, labels, and others."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.benchmark.methods import METHODS, find_method
from diffuser_policy.cli import main
from diffuser_policy.columns.features import FEATURIZERS, make_featurizer
from diffuser_policy.columns.labels import LABELS
from diffuser_policy.data.demonstrators import DEMONSTRATORS
from diffuser_policy.errors import DiffuserPolicyError, UnknownNameError
from diffuser_policy.guides.registry import GUIDES, find_guide
from diffuser_policy.plugins import Kind, address, checksum_of_code

ALL = (GUIDES, FEATURIZERS, LABELS, METHODS, DEMONSTRATORS)
ADDRESSED = [kind for kind in ALL if kind.addresses]
OURS = {
    GUIDES: "keep-out",
    FEATURIZERS: "kuka-blocks",
    LABELS: "kuka-pairs",
    METHODS: "bc",
    DEMONSTRATORS: "maze-waypoint",
}
CODE = '''
"""One thing of each kind."""

def guide(trajectory, *, strength: float = 1.0):
    return -strength * trajectory.position.sum(dim=(1, 2))

class featurizer:
    observation_size, num_columns, columns, objects = 4, 4, {}, ()

    def features(self, observations):
        return observations

def labels(columns):
    return {"high": columns["height"][:, 0] > 0}

def method(training, *, speed: float = 1.0):
    return None

class demonstrator:
    @classmethod
    def from_env(cls, env, *, seed, gain: float = 2.0):
        return cls()
'''

every_kind = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
addressed_kind = pytest.mark.parametrize("kind", ADDRESSED, ids=lambda kind: kind.name)
Capture = pytest.CaptureFixture[str]
Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what tests register in this process."""
    for kind in ALL:
        monkeypatch.setattr(kind, "registered", {})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution with one thing of each kind."""
    known = set(sys.modules)

    def install_one(module: str, code: str = CODE, name: str = "foreign") -> None:
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n"
        )
        (folder / "entry_points.txt").write_text(
            "".join(f"[{k.group}]\n{name} = {module}:{k.name}\n" for k in ALL)
        )
        (tmp_path / f"{module}.py").write_text(code)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield install_one
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def things(module: str = "kit") -> dict[Kind, Any]:
    """Return what a module of the code above defines, by kind."""
    found = importlib.import_module(module)
    return {kind: getattr(found, kind.name) for kind in ALL}


# --- found and listed ---------------------------------------------------------------


def test_one_distribution_offers_something_of_every_kind(install: Install) -> None:
    install("kit")
    assert find_guide("foreign").parameters[0].name == "strength"
    assert make_featurizer("foreign").observation_size == 4
    assert LABELS.find("foreign").target is things()[LABELS]
    assert find_method("foreign").settings({"speed": 2}) == {"speed": 2.0}
    assert DEMONSTRATORS.find("foreign").target is things()[DEMONSTRATORS]


@every_kind
def test_nothing_is_imported_before_it_is_looked_up(
    install: Install, kind: Kind
) -> None:
    install("kit")
    install("other", name="another")
    assert {"foreign", "another", OURS[kind]} <= set(kind.names())
    assert "foreign" in [plugin.name for plugin in kind.offers()]
    kind.find(OURS[kind])
    assert "kit" not in sys.modules
    assert kind.find("foreign").target is things()[kind]
    assert "other" not in sys.modules


@every_kind
def test_a_plug_in_has_an_origin(install: Install, kind: Kind) -> None:
    install("kit")
    kind.register("mine")(things()[kind])
    origins = {plugin.name: plugin.origin for plugin in kind.offers()}
    assert origins["foreign"] == "kit 1.0"
    assert origins["mine"] == "this process (kit)"
    assert origins[OURS[kind]].startswith("diffuser-policy ")


def test_info_lists_them_all_with_their_origin(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    install("kit")
    install("broken", "raise RuntimeError", name="another")
    METHODS.register("mine")(lambda training: training)
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for kind in ALL:
        assert f" {kind.name} broken 1.0 another {kind.name} kit 1.0 foreign" in shown
    assert "method this process (tests.test_plugins) mine" in shown
    assert "broken cannot be imported: RuntimeError" in shown  # no environments of it


# --- names --------------------------------------------------------------------------


@every_kind
def test_names_are_lower_case_words_with_dashes(kind: Kind) -> None:
    wrong: list[Any] = ["Keep", "keep_out", "", "-x", "a--b", "a ", "2d", 3]
    for name in wrong:
        with pytest.raises(kind.error, match="lower-case words joined by dashes"):
            kind.register(name)


@every_kind
def test_an_unknown_name_suggests_the_nearest(install: Install, kind: Kind) -> None:
    install("kit")
    with pytest.raises(UnknownNameError, match="Did you mean 'foreign'") as caught:
        kind.find("foreing")
    assert str(caught.value).startswith(f"Unknown {kind.name} 'foreing'")
    assert OURS[kind] in caught.value.known


def test_a_guide_in_a_file_says_where_it_works() -> None:
    for name in ("my_guides.py:wide", "my_guides.py", "my_guides:wide"):
        with pytest.raises(UnknownNameError, match="from a file work in Python only"):
            GUIDES.find(name)


@every_kind
def test_a_saved_name_that_is_unknown_says_what_may_be_missing(kind: Kind) -> None:
    message = f"This file uses the {kind.name} 'fore', which is not registered.*Install"
    with pytest.raises(kind.error, match=message):
        kind.find_saved("fore", "This file")


# --- conflicts ----------------------------------------------------------------------


@every_kind
def test_two_distributions_cannot_share_a_name(install: Install, kind: Kind) -> None:
    install("kit")
    install("other")
    message = r"name 'foreign' is offered twice, by kit 1\.0 and by other 1\.0"
    with pytest.raises(kind.error, match=message):
        kind.find("foreign")
    assert len([error for _, error in kind.entries() if error is not None]) == 2


@every_kind
def test_a_distribution_and_this_process_cannot_share_a_name(
    install: Install, kind: Kind
) -> None:
    install("kit")
    install("other", name="another")
    kind.register("foreign")(things("other")[kind])
    with pytest.raises(kind.error, match=r"by kit 1\.0 and by other:"):
        kind.find("foreign")


@every_kind
def test_this_process_gives_a_name_once(install: Install, kind: Kind) -> None:
    install("kit")
    install("other")
    kind.register("mine")(things()[kind])
    with pytest.raises(kind.error, match=r"twice, by kit:.* by other:"):
        kind.register("mine")(things("other")[kind])
    assert kind.find("mine").target is things()[kind]


@pytest.mark.parametrize(
    "kind", [kind for kind in ALL if kind is not DEMONSTRATORS], ids=lambda k: k.name
)
def test_partials_of_two_functions_cannot_share_a_name(
    install: Install, kind: Kind
) -> None:
    install("kit")
    install("other")
    kind.register("mine")(partial(things()[kind]))
    with pytest.raises(
        kind.error, match=r"twice, by kit:.*\(a partial\) and by other:"
    ):
        kind.register("mine")(partial(things("other")[kind]))
    again = partial(things()[kind])
    kind.register("mine")(again)  # as where a cell of a notebook is run again
    assert kind.find("mine").target is again
    assert kind.find("mine").origin == "this process (kit)"


@every_kind
def test_our_names_stay_ours(install: Install, kind: Kind) -> None:
    install("kit", name=OURS[kind])
    with pytest.raises(kind.error, match=r"offered twice, by .*\(diffuser-policy "):
        kind.register(OURS[kind])(things()[kind])
    assert not address(kind.find(OURS[kind]).target).startswith("kit:")
    [(plugin, error)] = [row for row in kind.entries() if row[1] is not None]
    assert plugin.origin == "kit 1.0"
    assert "by diffuser-policy" in str(error)


@every_kind
def test_the_same_definition_may_be_registered_again(
    install: Install, kind: Kind
) -> None:
    install("kit")
    first = things()
    kind.register("foreign")(first[kind])  # as a package does that decorates as well
    assert kind.find("foreign").origin == "kit 1.0"
    del sys.modules["kit"]
    again = things()
    assert again[kind] is not first[kind]
    kind.register("foreign")(again[kind])
    assert kind.find("foreign").target is again[kind]


@addressed_kind
def test_files_that_are_named_by_their_paths_register_nothing(
    tmp_path: Path, install: Install, kind: Kind
) -> None:
    """A file may also run as a script, and two files may use the same names."""
    install("kit")
    install("other", name="another")
    kind.register("mine")(things()[kind])
    for file in ("kit.py", "other.py"):
        kind.register("mine")(kind.find(f"{tmp_path}/{file}:{kind.name}").target)
    assert kind.find("mine").target is things()[kind]


# --- broken ones --------------------------------------------------------------------

BROKEN = {
    "raises": ("raise RuntimeError('no such GPU')", "RuntimeError: no such GPU"),
    "silent": ("raise RuntimeError", "RuntimeError: no message"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "empty": ("", "AttributeError: .*has no attribute"),
    "syntax": ("def still(:", "SyntaxError"),
    "missing": ("import no_such_module_at_all", "ModuleNotFoundError"),
    "wrong": (f"{' = '.join(kind.name for kind in ALL)} = 3", "Error: .*3"),
}


@every_kind
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plug_in_is_reported_and_the_others_work(
    install: Install, kind: Kind, how: str
) -> None:
    code, message = BROKEN[how]
    install("broken", code)
    install("fine", name="another")
    whole = (
        rf"The {kind.name} 'foreign' of broken 1\.0 cannot be loaded from "
        rf"'broken:{kind.name}': .*{message}"
    )
    with pytest.raises(kind.error, match=whole):
        kind.find("foreign")
    assert kind.find("another").target is things("fine")[kind]
    rows = {plugin.name: error for plugin, error in kind.entries()}
    assert re.search(whole, str(rows.pop("foreign")))
    assert set(rows.values()) == {None}


@every_kind
def test_a_plug_in_whose_package_is_gone_is_reported(
    install: Install, tmp_path: Path, kind: Kind
) -> None:
    install("kit")
    points = tmp_path / "kit-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("= kit:", "= gone_kit.parts:"))
    with pytest.raises(kind.error, match="No module named 'gone_kit'"):
        kind.find("foreign")
    errors = {plugin.name: error for plugin, error in kind.entries()}
    assert isinstance(errors["foreign"], kind.error)


@every_kind
def test_a_name_is_a_text(kind: Kind) -> None:
    with pytest.raises(kind.error, match="is a text, got None"):
        kind.find(None)  # type: ignore[arg-type]


@every_kind
def test_what_is_not_of_the_kind_is_not_registered(kind: Kind) -> None:
    with pytest.raises(kind.error, match=r"got 3"):
        kind.register("wrong")(3)  # type: ignore[type-var]
    assert not kind.registered


# --- addresses ----------------------------------------------------------------------


@addressed_kind
def test_what_is_registered_nowhere_has_an_address(
    tmp_path: Path, install: Install, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("kit")
    assert kind.find(f"kit:{kind.name}").target is things()[kind]
    path = f"{tmp_path}/kit.py:{kind.name}"
    assert kind.find(path).target is kind.find(path).target  # imported once
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    del sys.modules["kit"]
    monkeypatch.chdir(tmp_path)  # where modules are looked for as well
    assert kind.find(f"kit:{kind.name}").target is things()[kind]


@addressed_kind
def test_a_file_that_was_edited_is_imported_anew(
    tmp_path: Path, install: Install, kind: Kind
) -> None:
    install("kit")
    name = f"{tmp_path}/kit.py:{kind.name}"
    before = kind.find(name).target
    (tmp_path / "kit.py").write_text(f"{CODE}\n# edited\n")
    assert kind.find(name).target is not before
    (tmp_path / "kit.py").write_text(CODE)
    assert kind.find(name).target is before


def test_code_that_no_distribution_owns_has_a_checksum(
    tmp_path: Path, install: Install
) -> None:
    install("kit")
    names = ("kit:method", f"{tmp_path}/kit.py:method")
    for name in names:
        METHODS.find(name)
    before = [checksum_of_code(name) for name in names]
    assert before[0] is not None
    assert before[0] == before[1]
    (tmp_path / "kit.py").write_text(f"{CODE}\n# edited\n")
    after = [checksum_of_code(name) for name in names]
    assert after[0] == after[1] != before[0]
    for name in ("foreign", "bc", "gymnasium:make", "gone.py:method", "sys:exit"):
        assert checksum_of_code(name) is None


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@addressed_kind
def test_an_address_may_be_a_file_with_a_name_that_is_not_utf8(
    tmp_path: Path, install: Install, kind: Kind
) -> None:
    install("kit")
    path = (tmp_path / "kit.py").rename(tmp_path / os.fsdecode(b"caf\xe9.py"))
    assert kind.find(f"{path}:{kind.name}").target.__name__ == kind.name


@addressed_kind
def test_addresses_that_lead_nowhere_are_explained(
    tmp_path: Path, install: Install, kind: Kind
) -> None:
    install("kit")
    install("broken", "raise RuntimeError('no such GPU')")
    for name, error, message in (
        ("kit:methud", UnknownNameError, "function of kit 'methud'.*mean 'method'"),
        ("no_such_kit:x", UnknownNameError, f"Unknown {kind.name}.*No module named"),
        ("other.py:x", UnknownNameError, f"Unknown {kind.name}.*no file"),
        ("broken:x", kind.error, "'broken:x' cannot be loaded.*no such GPU"),
        (f"{tmp_path}/broken.py:x", kind.error, "cannot be loaded.*no such GPU"),
        ("kit:__doc__", kind.error, "'kit:__doc__' cannot be loaded"),
    ):
        with pytest.raises(error, match=message):
            kind.find(name)


@pytest.mark.parametrize("kind", [GUIDES, FEATURIZERS])
def test_a_saved_planner_cannot_name_a_module(install: Install, kind: Kind) -> None:
    install("kit")
    with pytest.raises(DiffuserPolicyError, match="not registered here"):
        kind.find_saved(f"kit:{kind.name}", "This planner")
    assert "kit" not in sys.modules
