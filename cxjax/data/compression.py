"""Reading of compressed files: gzip, bzip2, xz and Zstandard.

What a file is shows in its first bytes, whatever its name.
"""

import bz2
from collections.abc import Callable
import functools
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
  return _Streams(path, lambda: _Frame(package))


class _Frame:
  """A frame of the package zstandard, used as a stream of bz2 is."""

  needs_input = True

  def __init__(self, package: Any) -> None:
    self._frame = package.ZstdDecompressor().decompressobj()

  @property
  def eof(self) -> bool:
    """True at the end of the frame."""
    return bool(self._frame.eof)

  @property
  def unused_data(self) -> bytes:
    """Bytes after the end of the frame."""
    return bytes(self._frame.unused_data)

  def decompress(self, part: bytes, unused_most: int) -> bytes:
    """Unpacks a part; the package knows no limit."""
    return bytes(self._frame.decompress(part))


class _Streams:
  """A file of one or more streams, which are unpacked one after another.

  `bz2.open` and `lzma.open` end at a stream whose header is damaged, as if the
  file ended there. The reader of the package zstandard ends at the first of
  several frames, and does not tell a file that is cut from one that is whole.
  """

  def __init__(self, path: str, begin: Callable[[], Any], padding: int = 0):
    """Opens a file.

    Args:
      path: the file.
      begin: makes what unpacks a stream, as `bz2.BZ2Decompressor`.
      padding: zeros in a multiple of this number may follow a stream; 0 allows
        none.
    """
    self._file = open(path, 'rb')  # noqa: SIM115  Closed by __exit__.
    self._begin, self._padding, self._zeros = begin, padding, 0
    self._stream: Any = None
    self._part = b''

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: Any) -> None:
    self._file.close()

  def read(self, size: int) -> bytes:
    """Reads at least `size` bytes, or all that are left."""
    content = bytearray()
    while len(content) < size and self._fill():
      content += self._stream.decompress(self._part, CHUNK)
      self._part = self._stream.unused_data
    return bytes(content)

  def _fill(self) -> bool:
    """Reads what the stream needs, or begins another; False at the end."""
    while self._stream is None or self._stream.eof:
      if not self._part and not self._more():
        self._require_whole_padding()
        return False
      rest = self._part.lstrip(b'\0') if self._padding else self._part
      self._zeros += len(self._part) - len(rest)
      self._part = rest
      if rest:
        self._require_whole_padding()
        self._stream, self._zeros = self._begin(), 0
    if self._stream.needs_input and not self._part and not self._more():
      raise EOFError('it ends before its last stream does')
    return True

  def _more(self) -> bool:
    self._part = self._file.read(CHUNK)
    return bool(self._part)

  def _require_whole_padding(self) -> None:
    if self._zeros and self._zeros % self._padding:
      raise OSError(f'{self._zeros} zeros after a stream belong to none')


def _bzip2(path: str) -> _Streams:
  """Opens a file of bzip2."""
  return _Streams(path, bz2.BZ2Decompressor)


def _xz(path: str) -> _Streams:
  """Opens a file of xz, which may be padded to a multiple of four bytes."""
  begin = functools.partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)
  return _Streams(path, begin, padding=4)


FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[str], Any]], ...] = (
  (re.compile(rb'\x1f\x8b'), gzip.open),
  (re.compile(rb'BZh[1-9](1AY&SY|\x17rE8P\x90)'), _bzip2),
  (re.compile(rb'\xfd7zXZ\0'), _xz),
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
