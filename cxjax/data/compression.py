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
from typing import Self
import zlib

from cxjax import errors

# Bytes that tell a format from text; a text may begin with "BZh" as well.
LONGEST = 10
CHUNK = 2**16  # Bytes that are unpacked at a time.


def _zstandard(path: str) -> Any:
  """Opens a Zstandard file by the standard library or a package."""
  try:  # Since Python 3.14.
    return importlib.import_module('compression.zstd').open(path)
  except ImportError:
    pass
  try:
    package = importlib.import_module('zstandard')
  except ImportError as error:
    raise errors.UserError(
      f'{path} is compressed by Zstandard, which this Python cannot read. Run '
      'pip install zstandard, or compress it by gzip.'
    ) from error
  return _ZstandardFile(path, package)


class _ZstandardFile:
  """A file that the package zstandard unpacks.

  Its own reader ends at the first of several frames, and does not tell a file
  that is cut from one that is whole.
  """

  def __init__(self, path: str, package: Any) -> None:
    self._file = open(path, 'rb')  # noqa: SIM115  Closed by __exit__.
    self._frame = package.ZstdDecompressor().decompressobj
    self._open: Any = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: Any) -> None:
    self._file.close()

  def read(self, size: int) -> bytes:
    """Reads at least `size` bytes, or all that are left."""
    content = bytearray()
    while len(content) < size:
      part = self._file.read(CHUNK)
      if not part:
        if self._open is not None and not self._open.eof:
          raise EOFError('it ends before its last frame does')
        break
      while part:
        if self._open is None or self._open.eof:
          self._open = self._frame()
        content += self._open.decompress(part)
        part = self._open.unused_data
    return bytes(content)


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
