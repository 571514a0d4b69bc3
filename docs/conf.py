"""The site: sphinx-build -W -b html docs build/docs, with the extra `docs` installed."""

import fastsmtp

project = "fastsmtp"
author = "the fastsmtp authors"
copyright = author
version = release = fastsmtp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings, as GitHub has them

# The docstrings are prose; a signature has the types, one parameter to a line.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"fastsmtp {release}"
html_static_path = ["_static"]
html_css_files = ["fastsmtp.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
highlight_language = "none"  # a block that names no language is no Python
pygments_style = "friendly"
pygments_dark_style = "native"
