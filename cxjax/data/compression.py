"""Reading of compressed files: gzip, bzip2, xz and Zstandard.

What a file is shows in its first bytes, whatever its name.
"""

import bz2
from collections.abc import Callable
import gzip
import importlib
import lzma
import re
from typing import Any
import zlib

from cxjax import errors

# Bytes that tell a format from text; a text may begin with "BZh" as well.
LONGEST = 10


def _zstandard(path: str) -> Any:
  """Opens a Zstandard file by the standard library or a package."""
  try:  # Since Python 3.14.
    return importlib.import_module('compression.zstd').open(path)
  except ImportError:
    pass
  try:
    return importlib.import_module('zstandard').open(path)
  except ImportError as error:
    raise errors.UserError(
      f'{path} is compressed by Zstandard, which this Python cannot read. Run '
      'pip install zstandard, or compress it by gzip.'
    ) from error


FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[str], Any]], ...] = (
  (re.compile(rb'\x1f\x8b'), gzip.open),
  (re.compile(rb'BZh[1-9](1AY&SY|\x17rE8P\x90)'), bz2.open),
  (re.compile(rb'\xfd7zXZ\0'), lzma.open),
  (re.compile(rb'\x28\xb5\x2f\xfd'), _zstandard),
)
SUFFIXES = ('.gz', '.bz2', '.xz', '.zst')


def bare_name(path: str) -> str:
  """Name of a file in lower case, without the suffix of its compression."""
  name = path.lower()
  for suffix in SUFFIXES:
    name = name.removesuffix(suffix)
  return name


def read(path: str, most: int) -> tuple[bytes, bool]:
  """Reads a file, and unpacks it if it is compressed.

  Args:
    path: the file.
    most: bytes of unpacked content above which a file is refused, since it may
      be a thousand times as large as the file.

  Returns:
    The content, and whether it was compressed.

  Raises:
    UserError: the file cannot be read, is damaged, or is too large.
  """
  try:
    with open(path, 'rb') as file:
      start = file.read(LONGEST)
      unpack = next((f for form, f in FORMATS if form.match(start)), None)
      if unpack is None:
        return start + file.read(), False
    with unpack(path) as file:
      content: bytes = file.read(most + 1)
  except errors.UserError:
    raise
  except Exception as error:
    # Each library has its own classes, as zstandard.ZstdError.
    known = (OSError, EOFError, zlib.error, lzma.LZMAError)
    if not isinstance(error, known) and 'zst' not in type(error).__module__:
      raise
    raise errors.UserError(
      f'{path} cannot be read: {error}. Restore it, or leave it out of the '
      'pattern.'
    ) from error
  errors.require(
    len(content) <= most,
    f'{path} has more than {most:,} bytes once it is unpacked. Unpack it, or '
    'split it.',
  )
  return content, True
