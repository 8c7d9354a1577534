"""Text to learn from: documents, by where they come from.

A source is a word: `docstrings`, `files:GLOB` or `tfds:NAME/CONFIG[:FIELD]`.
"""

import ast
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import glob
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import platform
import re
import socket
import sysconfig
import warnings
import zlib

from absl import logging

from cxjax import errors
from cxjax import files

# Whose docstrings are read, besides Python's own library. Each is a dependency.
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
GZIP = b'\x1f\x8b'


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents.

  Attributes:
    documents: text, in a stable order; read by number.
    source: where they come from.
    fingerprint: of all of the text; of a dataset of tfds, which may not fit in
      memory, of its name, version and size and its first and last document.
    versions: of the packages that the text depends on.
  """

  documents: Sequence[str]
  source: str
  fingerprint: str
  versions: dict[str, str] = dataclasses.field(default_factory=dict)


def load(
  source: str,
  *,
  whole_files: bool = False,
  tfds_folder: str = '',
  cached: pathlib.Path | None = None,
) -> Corpus:
  """The corpus of a source.

  Args:
    source: 'docstrings', 'files:GLOB' or 'tfds:NAME/CONFIG[:FIELD]'.
    whole_files: a file of `files:` is one document; else blank lines part it.
    tfds_folder: of the datasets of tfds; '' is its own.
    cached: file of a corpus, by `save`; used, if packages are as they were, in
      place of reading all docstrings again.

  Returns:
    The corpus.

  Raises:
    UserError: an unknown source, or one without text; says what to do.
  """
  kind, _, rest = source.partition(':')
  corpus = errors.lookup('data.source', kind, SOURCES)(
    source,
    rest,
    whole_files=whole_files,
    tfds_folder=tfds_folder,
    cached=cached,
  )
  errors.require(
    len(corpus.documents) > 1,
    f'data.source={source} has {len(corpus.documents)} documents; there must '
    'be at least 2, one to learn from and one held out.',
  )
  return corpus


def save(corpus: Corpus, path: pathlib.Path) -> None:
  """Writes a corpus that fits in memory, for `load` to find."""
  files.write_json(
    path,
    {'versions': corpus.versions, 'documents': list(corpus.documents)},
  )


def _fingerprint(documents):
  digest = hashlib.sha256()
  for document in documents:
    text = document.encode()
    digest.update(f'{len(text)} '.encode() + text)
  return digest.hexdigest()[:16]


# Docstrings of what is installed.


def _docstrings(source, rest, *, cached, **unused):
  del unused
  errors.require(not rest, f'data.source={source}: nothing follows docstrings.')
  versions = {'python': platform.python_version()}
  roots = [pathlib.Path(sysconfig.get_paths()['stdlib'])]
  for name in PACKAGES:
    versions[name] = importlib.metadata.version(name)
    module = name.replace('-', '.')
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.submodule_search_locations is not None
    (root,) = spec.submodule_search_locations
    roots.append(pathlib.Path(root))
  if cached is not None and cached.exists():
    found = files.read_json(cached)
    if found['versions'] == versions:
      documents = tuple(found['documents'])
      return Corpus(documents, source, _fingerprint(documents), versions)
  logging.info('Reads the docstrings of %s.', ', '.join(versions))
  # A dict keeps the first of equals, in order.
  documents = tuple(
    dict.fromkeys(
      text
      for root in roots
      for path in sorted(root.rglob('*.py'))
      if _is_prose(path.relative_to(root))
      for text in docstrings(path)
    )
  )
  return Corpus(documents, source, _fingerprint(documents), versions)


def _is_prose(path):
  """Whether a file may hold docstrings: no tests, nothing installed in it."""
  unwanted = {'test', 'tests', 'site-packages', 'dist-packages', 'idlelib'}
  return not unwanted & set(path.parts)


def docstrings(path: pathlib.Path) -> Iterator[str]:
  """Cleaned docstrings of a Python file, in the order of the file.

  Args:
    path: of the file; one that is not Python of this version has none.

  Yields:
    Docstrings of at least `SHORTEST` characters.
  """
  try:
    with warnings.catch_warnings():
      # Of a backslash, say; it must not matter whether warnings are errors.
      warnings.simplefilter('ignore')
      tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return
  owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in ast.walk(tree):
    if isinstance(node, owners):
      text = clean(ast.get_docstring(node, clean=False) or '')
      if len(text) >= SHORTEST:
        yield text


def clean(text: str) -> str:
  """A docstring without its indentation and its markup.

  Roles and double backquotes keep their content; lines of examples (`>>>`),
  rules and directives go; runs of blanks become one, of blank lines too.

  Args:
    text: as in the source.

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


# Files.


def _files(source, pattern, *, whole_files, **unused):
  del unused
  found = glob.glob(os.path.expanduser(pattern), recursive=True)
  paths = sorted(filter(os.path.isfile, found))
  errors.require(
    bool(paths),
    f'data.source={source}: no file matches {pattern!r}. Quote the pattern, so '
    'that the shell leaves it alone.',
  )
  documents = tuple(
    d for path in paths for d in read_documents(path, whole_files)
  )
  errors.require(
    bool(documents), f'data.source={source}: the files have no text.'
  )
  return Corpus(documents, source, _fingerprint(documents))


def read_documents(path: str, whole: bool = False) -> list[str]:
  """The documents of a text file.

  Args:
    path: of a UTF-8 file, plain or gzip.
    whole: all of it is one; else they are what blank lines separate.

  Returns:
    Documents, without blanks around them.

  Raises:
    UserError: a file that cannot be read, or is not UTF-8; says where.
  """
  unpacked = ''
  try:
    content = pathlib.Path(path).read_bytes()
    if content.startswith(GZIP):
      content, unpacked = gzip.decompress(content), ' of what it unpacks to'
    text = content.decode().removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset '
      f'{error.start}{unpacked}. Convert it, or leave it out of the pattern.'
    ) from error
  except (OSError, EOFError, zlib.error) as error:
    raise errors.UserError(f'{path} cannot be read: {error}.') from error
  parts = [text] if whole else re.split(r'\n\s*\n', text)
  parts = (part.strip() for part in parts)
  return [part for part in parts if part]


# Datasets of tfds.


class _Field(Sequence):
  """One field of a source of examples, as text."""

  def __init__(self, examples, name):
    self._examples, self._name = examples, name

  def __len__(self):
    return len(self._examples)

  def __getitem__(self, index):
    if not 0 <= index < len(self):
      raise IndexError(index)
    value = self._examples[index][self._name]
    if not isinstance(value, bytes):
      return str(value)  # Of a mocked dataset.
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise errors.UserError(
        f'Example {index} of the dataset, field {self._name!r}, is not UTF-8: '
        f'byte 0x{value[error.start]:02x} at offset {error.start}.'
      ) from error


def _tfds(source, rest, *, tfds_folder, **unused):
  del unused
  name, _, field = rest.partition(':')
  errors.require(
    bool(name), f'data.source={source}: name a dataset, as in tfds:lm1b.'
  )
  builder = _builder(name, tfds_folder)
  texts = [
    name
    for name, feature in builder.info.features.items()
    if type(feature).__name__ == 'Text'
  ]
  errors.require(
    bool(texts), f'data.source={source}: the dataset {name} has no text.'
  )
  field = field or ('text' if 'text' in texts else texts[0])
  errors.lookup(f'field of text of {name}', field, dict.fromkeys(texts))
  if not builder.is_prepared():
    _prepare(builder, name)
  errors.lookup(f'split of {name}', 'train', builder.info.splits)
  try:
    examples = builder.as_data_source(split='train')
  except (NotImplementedError, ValueError) as error:
    raise errors.UserError(
      f'{name} cannot be read: {str(error).splitlines()[0]} It must be '
      'prepared with --file_format=array_record.'
    ) from error
  info = builder.info
  split = info.splits['train']
  marks = [info.full_name, field, split.num_examples, split.num_bytes]
  documents = _Field(examples, field)
  ends = [documents[0], documents[len(documents) - 1]] if documents else []
  fingerprint = _fingerprint([*map(str, marks), *ends])
  versions = {info.name: info.full_name}
  return Corpus(documents, source, fingerprint, versions)


def import_tfds():
  """The package, imported where it is used: it takes half a second."""
  import tensorflow_datasets

  return tensorflow_datasets


def _builder(name, folder):
  tfds = import_tfds()
  kwargs = {'data_dir': folder} if folder else {}
  try:
    return tfds.builder(name, file_format='array_record', **kwargs)
  except tfds.core.DatasetNotFoundError as error:
    raise errors.UserError(
      f'tfds has no dataset {name!r}, and none of that name is prepared in '
      f'data.tfds_folder={folder!r}. The names are at tensorflow.org/datasets; '
      'Wikipedia must be prepared first, see experiments/wikipedia_bert.py; '
      'books is no longer distributed, files:GLOB reads a copy of your own.'
    ) from error
  except ValueError as error:
    line = str(error).splitlines()[0]
    raise errors.UserError(
      f'{name} cannot be opened: {line} A dataset must be prepared with '
      '--file_format=array_record.'
    ) from error


def _prepare(builder, name):
  """Downloads a dataset, if there is a network."""
  advice = (
    'On a machine with network and TensorFlow run: tfds build '
    f'{name} --file_format=array_record, and copy its folder to '
    'data.tfds_folder.'
  )
  errors.require(
    _has_network(),
    f'{name} is not in {builder.data_path.parent}, and there is no network to '
    f'download it. {advice}',
  )
  try:
    builder.download_and_prepare()
  except Exception as error:  # Of any of the many things that it does.
    line = str(error).splitlines()[0]
    raise errors.UserError(
      f'{name} cannot be downloaded: {line} {advice}'
    ) from error


def _has_network() -> bool:
  """Whether the host of most datasets answers within seconds."""
  try:
    socket.create_connection(('storage.googleapis.com', 443), timeout=5).close()
  except OSError:
    return False
  return True


SOURCES: dict[str, Callable[..., Corpus]] = {
  'docstrings': _docstrings,
  'files': _files,
  'tfds': _tfds,
}
