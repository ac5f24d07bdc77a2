"""Settings of the documentation site: `make docs` builds it into build/site, and every warning is an error."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from docutils import nodes
from sphinx.domains.python import PyXRefRole

project = "hexssl"
author = copyright = "The hexssl authors"
release = version = importlib.metadata.version("hexssl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["figures.py"]

# Pages are Markdown, which is readable where it lies too.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings are numpydoc in reStructuredText. They say types in words, with shapes.
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"
smartquotes = False
default_role = "py:named"
suppress_warnings = ["ref.python"]  # hexssl.HEXStats and hexssl.arrays.HEXStats are two classes

html_theme = "furo"
html_title = f"hexssl {release}"
html_extra_path = ["exp_error.csv", "triton_aot.csv"]


class Named(PyXRefRole):
    """`A name` in a docstring: a link where it is dotted or a class, else, as for names of parameters, code."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if "." in self.target or self.target[:1].isupper():
            return super().run()
        return [nodes.literal(self.rawtext, self.title)], []


def head_fields(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A NamedTuple's docstring lists its fields without a heading: numpydoc wants one."""
    if what == "class" and issubclass(thing, tuple):
        first = next((index for index, line in enumerate(lines) if re.match(r"\w+(, \w+)* : ", line)), None)
        if first is not None:
            lines[first:first] = ["Attributes", "----------"]


def skip_fields(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """A field is described with its class, and not a second time as "Alias for field number 0"."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", head_fields, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_fields)
    app.add_role_to_domain("py", "named", Named())
