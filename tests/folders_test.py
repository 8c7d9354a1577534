"""Folders that cannot hold a run: one line each, and nothing is made."""

import contextlib
import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax import folders

# In a folder with `file`, `kept/`, and links to each, to nothing and to itself.
REFUSED = {
  'file': 'file is no folder',
  'file/x': 'file is no folder',
  'to_file': 'to_file is no folder',
  'to_file/x/y': 'to_file is no folder',
  'to_nothing': 'to_nothing is a link to what is not there',
  'to_nothing/x': 'to_nothing is a link to what is not there',
  'to_itself': 'cannot be used: Too many levels of symbolic links',
  '/dev/null': '/dev/null is no folder',
  '[a]': 'has ',
  'a\\b': 'has ',
  '**': 'has ',
  'a**b/c': 'has ',
  'a\0b': 'has ',
  'x' * 300: 'is too long',
  'x/' * 2000: 'is too long',
  '\udcff': 'is not UTF-8',
  'checkpoints/000000010': 'lies within the checkpoint',
  'checkpoints/000000010/x': 'lies within the checkpoint',
  'gs://bucket/x': "'gs://bucket/x' is no local path",
  'gs:/x': 'is no local path',
  'x/gs:/y': 'is no local path',
  's3://x': 'is no local path',
}


class FoldersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.enter_context(contextlib.chdir(folder))
    pathlib.Path('file').write_text('mine')
    pathlib.Path('kept').mkdir()
    for name in ('file', 'kept', 'nothing'):
      pathlib.Path(f'to_{name}').symlink_to(name)
    pathlib.Path('to_itself').symlink_to('to_itself')
    before = sorted(os.listdir())
    self.addCleanup(lambda: self.assertEqual(sorted(os.listdir()), before))

  @parameterized.parameters(*REFUSED.items())
  def test_is_refused(self, name, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      folders.check(name, '--flag')
    self.assertStartsWith(str(caught.exception), '--flag ')

  @parameterized.parameters(
    '.',
    'kept',
    'kept/x',
    'to_kept/x',
    'new/er',
    'a b',
    'ü',
    'a[b',
    'a*?',
    'a:b',
  )
  def test_is_accepted(self, name):
    folders.check(name)
    folders.check(pathlib.Path(name))

  def test_the_home_is_spelled_out(self):
    with (
      mock.patch.dict(os.environ, HOME='/home/me'),
      self.assertRaisesRegex(errors.UserError, "Give '/home/me/x' in its"),
    ):
      folders.check('~/x')

  def test_without_permission(self):
    """Root may enter all."""
    with (
      mock.patch.object(os, 'access', lambda path, mode: False),
      self.assertRaisesRegex(
        errors.UserError, 'permission denied by .*kept. Allow'
      ),
    ):
      folders.check('kept/x')
    only_read = lambda path, mode: not mode & os.W_OK
    with mock.patch.object(os, 'access', only_read):
      folders.check('kept/x')
      with self.assertRaisesRegex(errors.UserError, 'permission denied by'):
        folders.check('kept/x', write=True)
    denied = PermissionError(13, 'Permission denied')
    with (
      mock.patch.object(pathlib.Path, 'stat', side_effect=denied),
      self.assertRaisesRegex(errors.UserError, 'cannot be used: Permission'),
    ):
      folders.check('kept/x')


if __name__ == '__main__':
  absltest.main()
