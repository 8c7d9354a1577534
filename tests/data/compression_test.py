"""Tests of the reading of compressed files."""

import bz2
import gzip
import lzma
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax.data import compression

FORMATS = (
  ('gz', gzip.compress),
  ('bz2', bz2.compress),
  ('xz', lzma.compress),
)
TEXTS = (b'one' * 99, b'two' * 99, b'three')


class StreamsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'a.txt'

  def read(self, content, most=10_000):
    self.path.write_bytes(content)
    return compression.read(str(self.path), most)

  def refuses(self, content, message='a.txt cannot be read: '):
    with self.assertRaisesRegex(errors.UserError, message):
      self.read(content)

  @parameterized.parameters(*FORMATS)
  def test_streams_are_read_one_after_another(self, _, compress):
    streams = b''.join(map(compress, TEXTS))
    for chunk in (1, 7, 2**16):
      with mock.patch.object(compression, 'CHUNK', chunk):
        self.assertEqual(self.read(streams), (b''.join(TEXTS), True))

  @parameterized.parameters(*FORMATS)
  def test_a_damaged_header_of_a_later_stream(self, _, compress):
    first, second, third = map(compress, TEXTS)
    for i in range(3):
      damaged = second[:i] + bytes([second[i] ^ 1]) + second[i + 1 :]
      self.refuses(first + damaged + third)
      self.refuses(first + second + damaged)

  @parameterized.parameters(*FORMATS)
  def test_a_file_that_is_cut(self, _, compress):
    first, second, _ = map(compress, TEXTS)
    for size in (1, 2, 5, len(second) // 2, len(second) - 1):
      self.refuses(first + second[:size])

  @parameterized.parameters(*FORMATS)
  def test_bytes_after_the_last_stream(self, _, compress):
    self.refuses(compress(b'one') + b'garbage')
    self.refuses(compress(b'one') + b'\n')

  def test_zeros_after_a_stream(self):
    one, two, _ = map(lzma.compress, TEXTS)
    want = (b''.join(TEXTS[:2]), True)
    for chunk in (1, 7, 2**16):
      with mock.patch.object(compression, 'CHUNK', chunk):
        padded = one + b'\0' * 8 + two + b'\0' * 4
        self.assertEqual(self.read(padded), want)
        self.refuses(one + b'\0' * 6 + two, '6 zeros after a stream')
        self.refuses(one + two + b'\0', '1 zeros after a stream')
    self.refuses(bz2.compress(b'one') + b'\0' * 4)

  @parameterized.parameters(
    (bz2.compress, compression._bzip2), (lzma.compress, compression._xz)
  )
  def test_a_bomb_is_unpacked_no_further_than_is_allowed(self, pack, unpack):
    self.path.write_bytes(pack(b'1' * 10**6))
    with (
      mock.patch.object(compression, 'CHUNK', 2**10),
      unpack(str(self.path)) as file,
    ):
      self.assertLess(len(file.read(5_000)), 5_000 + 2**10)
    with self.assertRaisesRegex(errors.UserError, 'more than 5,000 bytes'):
      compression.read(str(self.path), 5_000)


if __name__ == '__main__':
  absltest.main()
