"""Tests of the programs that runs of the tests keep."""

import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp

import kept_programs


class KeptProgramsTest(absltest.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def test_a_process_that_ends_in_a_write_leaves_no_part(self):
    kept = pathlib.Path(jax.config.jax_compilation_cache_dir)
    named = lambda: list(kept.glob('jit_written_in_part-*'))
    for file in named():  # Of an earlier run.
      file.unlink()

    def written_in_part(x):
      return x * 3

    def end(path, value):
      path.touch()
      raise OSError('killed')

    with (
      mock.patch.object(pathlib.Path, 'write_bytes', end),
      self.assertWarnsRegex(UserWarning, 'killed'),
    ):
      jax.jit(written_in_part)(jnp.ones(7))
    self.assertEmpty(named())
    jax.clear_caches()
    jax.jit(written_in_part)(jnp.ones(7))
    self.assertLen(named(), 1)

  def test_a_folder_that_grew_too_large_is_made_anew(self):
    folder = self.folder()
    with mock.patch.object(kept_programs, 'FOLDER', folder):
      file = kept_programs.folder() / 'program'
      file.write_bytes(b'1234')
      for largest, exists in ((4, True), (3, False)):
        with mock.patch.object(kept_programs, 'LARGEST', largest):
          kept_programs.folder()
        self.assertEqual(file.exists(), exists)

  def test_processors_have_their_own(self):
    information = self.folder() / 'cpuinfo'
    found = []
    for text in ('flags: avx\n', 'cpu MHz: 1\nflags: avx\n', 'flags: avx2\n'):
      information.write_text(text)
      found.append(kept_programs.processor(information))
    self.assertEqual(found[0], found[1])
    self.assertNotEqual(found[0], found[2])
