"""The documentation site: the guides in this folder, the gallery of the examples, and the reference.

    pip install '.[docs]' && sphinx-build -W --keep-going -n docs build/site

The guides are Markdown that GitHub shows as it is. The site adds its first page and the reference.
"""

import os
import re
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

import fastbackprop

DOCS = Path(__file__).parent
GALLERY = [
    "swap_the_import",
    "digits",
    "private_digits",
    "outliers",
    "lbfgs",
    "scikit_learn",
    "pytorch",
    "bigger_than_memory",
]
os.environ["TQDM_DISABLE"] = "1"  # a page cannot show a progress bar

project = "fastbackprop"
author = "The fastbackprop developers"
project_copyright = "The fastbackprop developers"
version = release = fastbackprop.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["README.md"]  # included by guides.md
default_role = "code"
myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings have shapes and dtypes
# scikit-learn adds these methods, and documents them.
autodoc_default_options = {"exclude-members": "set_fit_request, set_partial_fit_request, set_score_request"}
nitpick_ignore_regex = [("py:.*", r"(sklearn|torch|dask)\..*")]  # other projects have their own pages
autosummary_generate = True
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"^(?!.*bigger_than_memory)",  # this one is shown, but not run: it takes minutes and 4 GB
    "within_subsection_order": ExplicitOrder([*(f"{name}.py" for name in GALLERY), "*"]),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "show_signature": False,
    "min_reported_time": 1e9,
}

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "fastbackprop"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_use_index = False
html_sidebars = {"index": [], "performance": [], "engine": [], "contributing": [], "changelog": []}
html_theme_options = {"navbar_align": "left", "footer_start": ["copyright"], "footer_end": ["sphinx-version"]}


def point_links_to_pages(_app, _name, *text):
    """Links to files of the repository become links to their pages on this site."""
    source = re.sub(r"\]\((?:\.\./|docs/)+", "](", text[-1][0])
    source = re.sub(r"\]\(examples/(\w+)\.py\)", r"](auto_examples/\1.rst)", source)
    source = source.replace("](examples)", "](auto_examples/index.rst)").replace("](README.md", "](guides.md")
    text[-1][0] = re.sub(r"\]\([A-Z_]+\.md", lambda link: link[0].lower(), source)


def list_guides(_app, name, text):
    """The navigation lists the guides in the order of docs/README.md."""
    if name == "guides":
        linked = re.findall(r"\]\((\w+)\.md\)", (DOCS / "README.md").read_text(encoding="utf-8"))
        guides = "\n".join(guide for guide in linked if guide not in ("engine", "performance"))
        text[0] = text[0].replace(":hidden:\n", f":hidden:\n\n{guides}")


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", list_guides)
    app.connect("source-read", point_links_to_pages)
    app.connect("include-read", point_links_to_pages)
