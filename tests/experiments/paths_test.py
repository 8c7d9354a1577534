"""Tests of the folders of the scripts."""

import importlib
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest

from experiments import paths


class CommandTest(absltest.TestCase):
  def test_folders_of_a_machine_are_left_out(self):
    given = ['map.py', '--workdir=/a', '--seeds=4', '--results', '/b']
    with mock.patch.object(sys, 'argv', given):
      command = paths.command('map')
    self.assertEqual(command, 'python -m experiments.map --seeds=4')


class HelpTest(absltest.TestCase):
  def test_lists_the_folders(self):
    """--help lists the flags that the program has for its own."""
    # Scripts of other tests may have taken the place of these flags.
    for name in ('results', 'workdir'):
      if name in flags.FLAGS:
        delattr(flags.FLAGS, name)
    importlib.reload(paths)
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    self.assertLessEqual({'results', 'workdir'}, {flag.name for flag in own})


if __name__ == '__main__':
  absltest.main()
