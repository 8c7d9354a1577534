"""Corpora of text documents, by their source.

A source is `docstrings`, `files:GLOB` or `tfds:NAME/CONFIG[:FIELD]`. Files are
text or of records (`records.KINDS`), plain or compressed.
"""

import ast
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import pathlib
import platform
import re
import sysconfig
from typing import Any
import warnings

from absl import logging

from cxjax import errors
from cxjax import files
from cxjax.data import records
from cxjax.data import text_files
from cxjax.data import tfds_documents

# Packages whose docstrings are read, besides the standard library. Each is a
# dependency of this one.
PACKAGES = (
  'numpy',
  'scipy',
  'jax',
  'flax',
  'optax',
  'orbax-checkpoint',
  'matplotlib',
)
SHORTEST = 80  # Characters of a docstring.


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents, and the source that they were read from.

  Attributes:
    documents: text, in a stable order, read by index.
    source: source that the documents come from.
    fingerprint: hash of the whole text. A dataset of tfds may not fit in
      memory; its hash covers its name, version and size, and its first and last
      document.
    versions: versions of the packages that the text depends on.
  """

  documents: Sequence[str] = dataclasses.field(repr=False)
  source: str
  fingerprint: str
  versions: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Request:
  """Arguments of `load`; `rest` is what follows the colon of the source."""

  source: str
  rest: str
  whole_files: bool
  tfds_folder: str
  cached: pathlib.Path | None
  fields: records.Fields


def load(
  source: str,
  *,
  whole_files: bool = False,
  tfds_folder: str = '',
  cached: pathlib.Path | None = None,
  fields: records.Fields | None = None,
) -> Corpus:
  """Loads the corpus of a source.

  Args:
    source: 'docstrings', 'files:GLOB' or 'tfds:NAME/CONFIG[:FIELD]'.
    whole_files: each text file of `files:` is one document; otherwise blank
      lines separate documents.
    tfds_folder: folder of prepared datasets; '' is the default of tfds.
    cached: file written by `save`. If the versions of the packages are still
      the same, docstrings are read from it.
    fields: fields of the records of files that have some, as .jsonl, each of
      which is a document; None is the field 'text'.

  Returns:
    The corpus, of at least two documents.

  Raises:
    UserError: the source is unknown, cannot be read, has too little text, or
      has no records for the fields that were chosen.
  """
  kind, _, rest = source.partition(':')
  errors.require(
    kind in SOURCES or '/' not in source,
    f'data.source={source!r} names no kind of source. For files of this '
    f"machine give 'files:{source}'.",
  )
  read = errors.lookup('data.source', kind, SOURCES)
  fields = fields or records.Fields()
  errors.require(
    kind == 'files' or fields.default,
    f'data.source={source} has no records: data.field, data.prompt_field and '
    f'data.completion_field are for files:GLOB of {text_files.listed()} files.',
  )
  corpus = read(
    _Request(source, rest, whole_files, tfds_folder, cached, fields)
  )
  errors.require(
    len(corpus.documents) > 1,
    f'data.source={source} has {len(corpus.documents)} documents; there must '
    'be at least 2, one for training and one held out.',
  )
  return corpus


def save(corpus: Corpus, path: pathlib.Path) -> None:
  """Writes a corpus that fits in memory, to be passed to `load` as `cached`."""
  files.write_json(
    path,
    {'versions': corpus.versions, 'documents': list(corpus.documents)},
  )


def _fingerprint(texts: Iterable[str]) -> str:
  digest = hashlib.sha256()
  for text in texts:
    encoded = text.encode()
    prompt = f'{text.prompt} ' if isinstance(text, records.Prompted) else ''
    digest.update(f'{prompt}{len(encoded)} '.encode() + encoded)
  return digest.hexdigest()[:16]


def _read_docstrings(request: _Request) -> Corpus:
  """Reads the docstrings of the standard library and of `PACKAGES`."""
  source, cached = request.source, request.cached
  errors.require(
    not request.rest,
    f'data.source={source}: nothing follows docstrings. Drop :{request.rest}.',
  )
  versions = {'python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
  if cached is not None and cached.exists():
    found = _kept(cached)
    if found['versions'] == versions:
      documents = tuple(found['documents'])
      return Corpus(documents, source, _fingerprint(documents), versions)
  logging.info('Reads the docstrings of %s.', ', '.join(versions))
  standard = pathlib.Path(sysconfig.get_paths()['stdlib'])
  texts = (
    text
    for root in (standard, *map(_package_root, PACKAGES))
    for path in sorted(root.rglob('*.py'))
    if _is_prose(path.relative_to(root))
    for text in docstrings(path)
  )
  documents = tuple(dict.fromkeys(texts))  # Keeps the first of duplicates.
  return Corpus(documents, source, _fingerprint(documents), versions)


def _kept(path: pathlib.Path) -> dict[str, Any]:
  """Reads what `save` wrote; raises UserError if it is damaged."""
  advice = 'remove it: the docstrings are then read again'
  found = files.read_json(path, advice)
  intact = isinstance(found, dict) and {'documents', 'versions'} <= found.keys()
  errors.require(
    intact
    and isinstance(found['documents'], list)
    and all(isinstance(one, str) for one in found['documents']),
    f'{path} is damaged. Restore it, or {advice}.',
  )
  return dict(found)


def _package_root(name: str) -> pathlib.Path:
  """Folder of an installed package, by the name of its distribution."""
  spec = importlib.util.find_spec(name.replace('-', '.'))
  assert spec is not None and spec.submodule_search_locations is not None
  (root,) = spec.submodule_search_locations
  return pathlib.Path(root)


def _is_prose(path: pathlib.Path) -> bool:
  """Returns whether to read a file: no tests, no packages installed inside."""
  unwanted = {'test', 'tests', 'site-packages', 'dist-packages', 'idlelib'}
  return not unwanted & set(path.parts)


def docstrings(path: pathlib.Path) -> Iterator[str]:
  """Cleaned docstrings of a Python file, in the order of the file.

  Args:
    path: the file; a file that this Python cannot parse has none.

  Yields:
    Docstrings of at least `SHORTEST` characters.
  """
  try:
    with warnings.catch_warnings():
      # A stray backslash warns; the corpus must not depend on warning filters.
      warnings.simplefilter('ignore')
      tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return
  owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in _statements(tree):
    if isinstance(node, owners):
      text = clean(ast.get_docstring(node, clean=False) or '')
      if len(text) >= SHORTEST:
        yield text


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
  """The nodes that hold statements, in the order of `ast.walk`.

  Expressions are most of a tree, and hold no definition.
  """
  kinds = (ast.stmt, ast.excepthandler, ast.match_case)
  nodes: collections.deque[ast.AST] = collections.deque([tree])
  while nodes:
    node = nodes.popleft()
    yield node
    for name in node._fields:
      values = getattr(node, name)
      if isinstance(values, list):
        nodes.extend(v for v in values if isinstance(v, kinds))


def clean(text: str) -> str:
  """A docstring without its indentation and its markup.

  Roles and double backquotes keep their content. Examples (`>>>`), rules and
  directives are removed. Runs of blanks become one blank, and runs of blank
  lines one blank line.

  Args:
    text: docstring as in the source.

  Returns:
    Lines of prose.
  """
  text = inspect.cleandoc(text)
  text = re.sub(r':[a-z:]+:`~?([^`<]*)(?:<[^`]*>)?`_*', r'\1', text)
  text = re.sub(r'`+([^`]*)`+_*', r'\1', text)
  lines = (
    re.sub(r'[ \t]+', ' ', line).strip()
    for line in text.splitlines()
    if not re.match(r'\s*(>>>|\.\. |\.\.\.|[-=~^*#_+|]{3,})', line)
  )
  return re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip()


def _read_files(request: _Request) -> Corpus:
  """Reads the text files that match a pattern."""
  source, paths = request.source, text_files.find(request.rest)
  if not request.fields.default:
    text_files.require_records(source, paths, bool(request.fields.prompt))
  found = {
    path: text_files.read(path, request.whole_files, request.fields)
    for path in paths
  }
  documents = tuple(itertools.chain.from_iterable(found.values()))
  text_files.warn_of_records(found)
  errors.require(
    bool(documents),
    f'data.source={source}: the files have no text. Choose others.',
  )
  return Corpus(documents, source, _fingerprint(documents))


def _read_tfds(request: _Request) -> Corpus:
  """Opens the training split of a dataset of tfds."""
  name, _, field = request.rest.partition(':')
  errors.require(
    bool(name),
    f'data.source={request.source}: name a dataset, as in tfds:lm1b.',
  )
  dataset = tfds_documents.load(name, field, request.tfds_folder)
  documents = dataset.documents
  ends = [documents[0], documents[len(documents) - 1]] if documents else []
  fingerprint = _fingerprint([*dataset.identity, *ends])
  versions = {dataset.name: dataset.full_name}
  return Corpus(documents, request.source, fingerprint, versions)


SOURCES: dict[str, Callable[[_Request], Corpus]] = {
  'docstrings': _read_docstrings,
  'files': _read_files,
  'tfds': _read_tfds,
}
