"""Files of documents: text, and records by the ends of their names."""

from collections.abc import Mapping
from collections.abc import Sequence
import errno
import glob
import os
import re

from absl import logging

from cxjax import errors
from cxjax.data import compression
from cxjax.data import records

ARCHIVES = ('.tar', '.tgz', '.tbz', '.tbz2', '.txz', '.tzst', '.zip')
# Beginnings of files that may be UTF-8 and are no text to be read.
MARKUP = ('%PDF-', '{\\rtf')
MOST = 2**30  # Bytes of a compressed file when unpacked.


def find(pattern: str) -> list[str]:
  """The files that match a pattern, each once, in the order of their names.

  `**/**` finds a file once for each folder above it, and links find it by other
  names.

  Args:
    pattern: a glob, of the user's home too.

  Returns:
    Their paths.

  Raises:
    UserError: there is none, or a link to one that is not there.
  """
  whole = os.path.expanduser(pattern)
  found = glob.glob(whole, recursive=True)
  for path in found:
    errors.require(
      not _is_lost(path),
      f'data.source=files:{pattern}: {path} is a link to what is not there. '
      'Restore that, or leave the link out of the pattern.',
    )
  paths = sorted(filter(os.path.isfile, found))
  if not paths:
    raise errors.UserError(
      f'data.source=files:{pattern}{_no_files(pattern, whole, found)}'
    )
  # Of the names of a file the first stays.
  once = {os.path.realpath(path): path for path in reversed(paths)}
  if len(once) < len(paths):
    logging.info(
      'data.source=files:%s finds some files more than once: %d of %d are left '
      'out.',
      errors.shown(pattern),
      len(paths) - len(once),
      len(paths),
    )
  return sorted(once.values())


def _is_lost(path: str) -> bool:
  """True for a link to what is not there."""
  try:
    os.stat(path)
  except OSError as error:
    # `**` follows a link to its own folder.
    return os.path.islink(path) and error.errno != errno.ELOOP
  return False


def _no_files(pattern: str, whole: str, found: Sequence[str]) -> str:
  """Advice on a pattern, here with the user's home, that finds no file."""
  folder = next(filter(os.path.isdir, found), None)
  if folder is not None:
    inside = glob.escape(folder.rstrip('/'))
    return (
      f" finds no files, only folders: give 'files:{inside}/*', or "
      '/**/* in place of /* for the folders below it too.'
    )
  if found:
    return f': {found[0]} is a device or a pipe. Give files.'
  if os.path.isfile(whole):
    return (
      f' has brackets that stand for one character: give '
      f"'files:{glob.escape(whole)}' for the file of that name."
    )
  return (
    f': no file matches {pattern!r}. Quote the pattern, so that the shell does '
    'not expand it.'
  )


def warn_of_records(found: Mapping[str, Sequence[str]]) -> None:
  """Warns of text whose lines are objects, as JSON lines of another name."""
  like = [
    path
    for path, documents in found.items()
    if not _has_records(path)
    and any(records.is_object(one.partition('\n')[0]) for one in documents[:1])
  ]
  if like:
    logging.warning(
      '%s is read as text, and its first line is an object of JSON, names of '
      'fields and all (%d of %d files). If its lines are records, name it '
      '.jsonl.',
      errors.shown(like[0]),
      len(like),
      len(found),
    )


def require_records(source: str, paths: Sequence[str], every: bool) -> None:
  """Raises UserError unless some file, or every file, has records."""
  rest = [p for p in paths if not _has_records(p)]
  errors.require(
    len(rest) < (1 if every else len(paths)),
    f'data.source={source}: {rest[0] if rest else ""} is text, without fields. '
    'Leave data.field, data.prompt_field and data.completion_field out, or '
    f'give {listed()} files alone.',
  )


def _has_records(path: str) -> bool:
  return compression.bare_name(path).endswith(records.KINDS)


def listed() -> str:
  """Kinds of files that have records, for messages."""
  return f'{", ".join(records.KINDS[:-1])} or {records.KINDS[-1]}'


def read(
  path: str, whole: bool = False, fields: records.Fields | None = None
) -> list[str]:
  """Documents of a file of text, or of records.

  Args:
    path: the file, plain or compressed; text is UTF-8.
    whole: a text file is one document; otherwise blank lines separate
      documents.
    fields: fields of the records, each of which is a document; None is 'text'.

  Returns:
    The documents; none of them is blank. Those of text and of one field are
    without surrounding whitespace.

  Raises:
    UserError: the file is an archive, cannot be read, is not UTF-8, or has a
      record that is no document; says where.
  """
  fields, name = fields or records.Fields(), compression.bare_name(path)
  errors.require(
    not name.endswith(ARCHIVES),
    f'{path} is an archive. Unpack it, or leave it out of the pattern.',
  )
  content, compressed = compression.read(path, MOST)
  if name.endswith(records.PARQUET):
    return list(records.read_parquet(path, content, fields))
  try:
    text = content.decode().removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    unpacked = ' of the unpacked content' if compressed else ''
    raise errors.UserError(
      f'{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset '
      f'{error.start}{unpacked}. Convert it, or leave it out of the pattern.'
    ) from error
  errors.require(
    not text.startswith(MARKUP),
    f'{path} is no plain text but a PDF or RTF file. Convert it, or leave it '
    'out of the pattern.',
  )
  # UTF-16 and most files that are no text have some.
  errors.require(
    '\0' not in text,
    f'{path} is no text in UTF-8: the character {text.find(chr(0)) + 1} is '
    'NUL. Convert it, or leave it out of the pattern.',
  )
  for end, reader in records.READERS.items():
    if name.endswith(end):
      return list(reader(path, text, fields))
  parts = [text] if whole else re.split(r'\n\s*\n', text)
  return [stripped for part in parts if (stripped := part.strip())]
