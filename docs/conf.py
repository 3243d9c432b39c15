"""Settings of the documentation: Sphinx, Furo, and pages in Markdown (MyST)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent), str(HERE.parent / "envs")]

project = "diffuser-policy"
author = "The diffuser-policy contributors"
project_copyright = author

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "markdown_docstrings",
    "generated",
    "mathml",
]
exclude_patterns = ["_build"]

# --- pages --------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # an included file may begin at any level
    "ref.python",  # a short name may mean several things: the first will do
]

# --- docstrings -----------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "ignore-module-all": True,  # names are documented where they are defined
}
add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

# --- looks --------------------------------------------------------------------

smartquotes = False  # "--" in names stays as it is
html_theme = "furo"
html_math_renderer = "mathml"
html_title = "diffuser-policy"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_copy_source = False
