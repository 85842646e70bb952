"""Settings of the manual; ``sphinx-build -W -b html docs build/docs`` builds it."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

project = "etw_lightning"
author = "the authors of etw_lightning"
copyright = f"{author}, MIT licence"  # noqa: A001
release = version = installed_version("etw-lightning")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "reference_pages",
]
exclude_patterns = ["_templates", "generated/modules.md"]
templates_path = ["_templates"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "etw_lightning"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
