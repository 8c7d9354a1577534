"""Signals while a program imports its packages."""

import pathlib
import signal
import subprocess
import sys

from absl.testing import parameterized
import pytest

from experiments import interrupts

ROOT = interrupts.ROOT
# In place of a package that programs import early.
SIGNALED = 'import os\nos.kill(os.getpid(), {})\n'


class ProgramTest(parameterized.TestCase):
  @parameterized.parameters(
    ('python launch.py --workdir=x', 'launch.py'),
    ('python -X dev -u -m experiments.tune -m', 'experiments.tune'),
    ('python -c import/launch launch.py', ''),
    ('python -m', ''),
    ('python', ''),
  )
  def test_is_the_script_or_the_module(self, command, want):
    self.assertEqual(interrupts.program(command.split()), want)

  def test_is_ours(self):
    ours = ROOT / 'launch.py', ROOT / 'experiments/tune.py', 'experiments.tune'
    others = (
      'pytest',
      ROOT / 'setup.py',
      ROOT / 'tests/launch.py',
      'x/launch.py',
    )
    for name in ours:
      self.assertTrue(interrupts.is_ours(str(name)))
    for name in others:
      self.assertFalse(interrupts.is_ours(str(name)))

  def test_a_notebook_hears_signals_as_before(self):
    self.assertFalse(interrupts.is_ours(interrupts.program(sys.orig_argv)))


@pytest.mark.slow
class ImportsTest(parameterized.TestCase):
  @parameterized.product(
    number=(signal.SIGINT, signal.SIGTERM),
    command=(('launch.py',), ('-m', 'experiments.tune')),
  )
  def test_is_one_line(self, number, command):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'ml_collections.py').write_text(SIGNALED.format(int(number)))
    done = subprocess.run(
      [sys.executable, '-B', *command, f'--workdir={folder}/run'],
      cwd=ROOT,
      env={'PYTHONPATH': str(folder)},
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )
    said = f'Stopped by {number.name}. What was saved stays; the same command '
    self.assertEqual(done.stderr, f'{said}resumes.\n')
    self.assertEqual(done.returncode, 128 + number)
    self.assertFalse((folder / 'run').exists())
