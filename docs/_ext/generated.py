"""Pages that are made of the code: settings, errors, and the Python reference.

    ```{settings} WindowConfig --window.
    ```

lists the fields of a dataclass in `diffuser_policy.config`: option, type, default, the
docstring below the field, and what it needs to have an effect.

    ```{errors} diffuser_policy.errors
    ConfigError: Advice, in one line.
    ```

lists the errors of a module with their docstrings and the advice that the page gives.
An error without advice, or advice for no error, is a warning, which ends the build.

For every sub-package, `api/` gets a page with the docstrings of all its modules.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, get_args

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from diffuser_policy import choices
from diffuser_policy.needs import (
    CLASSIFIER_NEEDS,
    NETWORK_NEEDS,
    PLANNING_NEEDS,
    Needs,
)

ROOT = Path(__file__).parents[2]
SOURCES = {
    "diffuser_policy": ROOT / "diffuser_policy",
    "diffuser_envs": ROOT / "envs/diffuser_envs",
}
PLAIN = (Exception, BaseException, object)
LOGGER = logging.getLogger(__name__)


def setup(app: Any) -> dict[str, Any]:
    """Register the directives and the writer of the reference's pages."""
    app.add_directive("settings", Settings)
    app.add_directive("errors", Errors)
    app.connect("builder-inited", write_api)
    return {"parallel_read_safe": True}


class Settings(SphinxDirective):
    """The fields of a settings dataclass, as a list of definitions."""

    required_arguments = 1
    optional_arguments = 1  # what the command line puts before each name

    def run(self) -> list[nodes.Node]:
        """Return the list."""
        source = SOURCES["diffuser_policy"] / "config.py"
        self.env.note_dependency(str(source))
        return self.parse_text_to_nodes(
            settings_page(
                source.read_text(), *self.arguments, needs=needs_of(self.arguments[0])
            )
        )


def needs_of(name: str) -> Needs:
    """Return what the settings of a dataclass need to have an effect."""
    return {
        "PlannerConfig": PLANNING_NEEDS,
        "ExecutionConfig": PLANNING_NEEDS,
        "NetworkConfig": NETWORK_NEEDS,
        "ClassifierConfig": CLASSIFIER_NEEDS,
    }.get(name, {})


def settings_page(
    source: str, name: str, prefix: str = "", *, needs: Needs | None = None
) -> str:
    """Return the Markdown list of a dataclass's settings.

    Args:
        source: Python code of the module that defines it.
        name: Of the dataclass.
        prefix: Of its options; none: they are not on the command line.
        needs: What settings need to have an effect.

    Raises:
        LookupError: No such class, or a field without a docstring.
    """
    [found] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    lines = []
    for field, text in zip(found.body, found.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign):
            continue
        title, said = ast.unparse(field.target), _docstring(text)
        if said is None:
            raise LookupError(f"{name}.{title} has no docstring below it.")
        kind = ast.unparse(field.annotation)
        if kind in vars(choices):
            names = get_args(vars(choices)[kind])
            kind = " | ".join(f'"{name}"' for name in names)
            said = re.sub(rf"\b({'|'.join(names)}):", r"`\1`:", said)
        option = f" · `{prefix}{title.replace('_', '-')}`" if prefix else ""
        kind = f"*{_escaped(kind)}*"
        if part := re.search(r"\w+Config", kind):  # settings of their own
            kind, option = f"[{kind}](#{part[0].lower()})", ""
        default = f" = `{_default(field.value)}`" if field.value else " (required)"
        lines += [
            f"({name}.{title})=",
            f"`{title}`{default}",
            f": {' '.join(said.split())}",
            "",
            f"  {kind}{option}{_need((needs or {}).get(title))}",
            "",
        ]
    return "\n".join(lines)


def _need(need: tuple[str, tuple[str, ...]] | None) -> str:
    """Return in words what a setting needs, to stand after its option."""
    if need is None:
        return ""
    other, values = need
    words = {"guide": "a guide", "goals": "goals"}.get(other, f"`{other}`")
    chosen = " or ".join(f'`{other}="{value}"`' for value in values)
    return f" · only with {chosen or words}"


def _docstring(node: ast.stmt) -> str | None:
    """Return the text of a bare string, or none."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return str(node.value.value)
    return None


def _default(value: ast.expr) -> str:
    """Return the source of a default; `field(default_factory=X)` is `X()`."""
    if isinstance(value, ast.Call) and value.keywords:
        return f"{ast.unparse(value.keywords[0].value)}()"
    return ast.unparse(value).replace("'", '"')


def _escaped(text: str) -> str:
    """Return text whose signs Markdown takes as they are."""
    return "".join(f"\\{sign}" if sign in "|*_[]" else sign for sign in text)


class Errors(SphinxDirective):
    """The errors of a module, each with what it means and what to do."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a list of definitions; the content has one line of advice for each."""
        advice = {
            name: text.strip()
            for name, _, text in (line.partition(":") for line in self.content if line)
        }
        module = importlib.import_module(self.arguments[0])
        self.env.note_dependency(str(module.__file__))
        lines = []
        for name, error in errors_of(module):
            said = advice.pop(name, None)
            if said is None:
                LOGGER.warning("no advice for %s", name, location=self.get_location())
            parents = " and ".join(f"`{base}`" for base in refines(error))
            text = (inspect.getdoc(error) or "").partition("Attributes:")[0]
            meaning = " ".join(text.split())
            lines += [
                f"({module.__name__}.{name})=",
                f"`{name}`",
                f": {meaning} Refines {parents}." if parents else f": {meaning}",
                "",
                f"  {said or ''}",
                "",
            ]
        for name in advice:
            LOGGER.warning("no error %s", name, location=self.get_location())
        return self.parse_text_to_nodes("\n".join(lines))


def errors_of(module: Any) -> list[tuple[str, type[Exception]]]:
    """Return the exceptions that a module defines, in the order of its lines."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == module.__name__
    ]


def refines(error: type[Exception]) -> list[str]:
    """Return the built-in exceptions that an error is one of, without their parents."""
    found = [
        base
        for base in error.__mro__
        if base.__module__ == builtins.__name__ and base not in PLAIN
    ]
    return [
        base.__name__
        for base in found
        if not any(other is not base and issubclass(other, base) for other in found)
    ]


def write_api(app: Any) -> None:
    """Write a page for every sub-package, and one for the modules beside them."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages: dict[str, list[str]] = {}
    for package, source in SOURCES.items():
        names = [path.stem for path in sorted(source.glob("*.py"))]
        inner = [f"{package}.{name}" for name in names if not name.startswith("_")]
        pages[package] = [package, *inner]
        for part in sorted(path.parent.name for path in source.glob("*/__init__.py")):
            if part != "cli":  # its options are on the page of settings
                name = f"{package}.{part}"
                pages[name] = _modules(source / part, name)
    for path in folder.iterdir():
        if path.stem not in pages:
            path.unlink()
    for name, modules in pages.items():
        _write(folder / f"{name}.rst", name, modules)


def _modules(folder: Path, name: str) -> list[str]:
    """Return the modules of a package, the package itself first."""
    inner = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        inner.append(".".join((name, *(part for part in parts if part != "__init__"))))
    return sorted(inner)


def _write(path: Path, title: str, modules: list[str]) -> None:
    """Write a page of the reference, unless it is there already."""
    lines = [title, "=" * len(title), ""]
    for name in modules:
        if name != title:
            lines += [name.removeprefix(f"{title}."), "-" * len(name), ""]
        lines += [f".. automodule:: {name}", ""]
    text = "\n".join(lines)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
