"""Configuration of the documentation site (Sphinx)."""

import os
import pathlib
import re
import shutil
import sys
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import cxjax  # noqa: E402

project = 'cxjax'
author = 'The cxjax authors'
project_copyright = '2026, the cxjax authors. Apache License 2.0'
version = release = cxjax.__version__
REPOSITORY = 'https://github.com/cxjax/cxjax/blob/main'
NOTEBOOKS = ROOT / 'experiments' / 'notebooks'
# Pages whose text is a file elsewhere in the repository.
ELSEWHERE = {
  'changelog': 'CHANGELOG.md',
  'contributing': 'CONTRIBUTING.md',
  'scaling': 'experiments/scaling.md',
}

extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx_copybutton',
]
exclude_patterns = ['_build']
smartquotes_action = 'D'
html_theme = 'furo'
html_title = 'cxjax'
html_static_path = ['_static']
html_css_files = ['tables.css']
html_copy_source = False

autodoc_member_order = 'bysource'
autodoc_preserve_defaults = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
napoleon_numpy_docstring = False
napoleon_custom_sections = ['References']
napoleon_use_ivar = True

myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3
# Notebooks keep the outputs of their full-size run.
nb_execution_mode = 'off'
nb_render_markdown_format = 'gfm'  # Their outputs have tables.
# Their first cell has lines of IPython, which is no Python.
suppress_warnings = ['misc.highlighting_failure']


def copy_notebooks() -> None:
  """Copies the notebooks beside the pages; git ignores the copies."""
  folder = DOCS / 'notebooks'
  folder.mkdir(exist_ok=True)
  for old in folder.glob('*.ipynb'):
    if not (NOTEBOOKS / old.name).exists():
      old.unlink()
  for path in sorted(NOTEBOOKS.glob('*.ipynb')):
    copy = folder / path.name
    if not copy.exists() or copy.read_bytes() != path.read_bytes():
      shutil.copyfile(path, copy)


def link(target: str, page: pathlib.Path, folder: pathlib.Path) -> str:
  """Returns where a link of a page leads on the site.

  Args:
    target: link as it is written, for GitHub: relative to `folder`.
    page: page of the site.
    folder: folder of the file that has the page's text.

  Returns:
    A path relative to the page, or for a file that is not part of the site
    its address in the repository.
  """
  path, mark, part = target.partition('#')
  if not path or re.match(r'\w+:', target):
    return target
  there = (folder / path).resolve()
  for name, file in ELSEWHERE.items():
    if there == ROOT / file:
      there = DOCS / f'{name}.md'
  if there.parent == NOTEBOOKS:
    there = DOCS / 'notebooks' / there.name
  if there.is_relative_to(DOCS):
    return os.path.relpath(there, page.parent) + mark + part
  return f'{REPOSITORY}/{there.relative_to(ROOT)}{mark}{part}'


def rewrite_links(app: Any, name: str, source: list[str]) -> None:
  """Makes the links of a page those of the site, once it is read."""
  page = pathlib.Path(app.env.doc2path(name))
  if page.suffix != '.md':
    return
  file = ROOT / ELSEWHERE[name] if name in ELSEWHERE else page
  app.env.note_dependency(str(file))  # Else a change there is not seen.
  pattern = r'(?<!!)(\[[^\[\]]*\])\(([^)\s]+)\)'
  source[0] = re.sub(
    pattern,
    lambda m: f'{m[1]}({link(m[2], page, file.parent)})',
    file.read_text(),
  )


def write_for_sphinx(
  app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  """Turns the code of a docstring, between backticks, into that of reST."""
  del app, what, name, obj, options
  # Every second part is code.
  parts = re.split(r'`([^`]+)`', '\n'.join(lines))
  for i, part in enumerate(parts):
    if i % 2:
      parts[i] = f'``{" ".join(part.split())}``'
    else:
      part = re.sub(r'(?<=\S)\*|\*(?=[^\s*])', r'\\*', part)
      # A letter right after code, as in a plural.
      parts[i] = re.sub(r'^(?=\w)', r'\\ ', part) if i else part
  lines[:] = ''.join(parts).split('\n')


def shorten_signature(
  app: Any,
  what: str,
  name: str,
  obj: Any,
  options: Any,
  signature: str | None,
  returns: str | None,
) -> tuple[str | None, str | None]:
  """Leaves linen's own arguments out, and writes defaults as code.

  Sphinx neither breaks nor shortens a signature that it cannot parse.
  """
  del app, what, name, obj, options
  for pattern, new in {
    r', parent:.*_Sentinel object[^>]*>, name:.*? = None': '',
    r"<class '[\w.]*?(\w+)'>": r'\1',
    r'<(?:built-in )?function (\w+)>': r'\1',
    r'<function [\w.]*<lambda>>|<factory>': '...',
  }.items():
    signature = signature and re.sub(pattern, new, signature)
  return signature, returns


def setup(app: Any) -> None:
  """Registers the extension that this file is."""
  copy_notebooks()
  app.connect('source-read', rewrite_links)
  app.connect('autodoc-process-signature', shorten_signature)
  # Before napoleon, which reads the sections.
  app.connect('autodoc-process-docstring', write_for_sphinx, priority=400)
