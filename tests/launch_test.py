"""launch.py as people call it: a process, its exit code, what it prints."""

import os
import pathlib
import subprocess
import sys

from absl.testing import parameterized
import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
CONFIG = '--config=experiments/parity_mlp.py'

# Flags can be parsed once in a process, and importing what they need takes
# seconds.
PARSE = """
import os
import sys
import launch
for args in sys.argv[1:]:
  if os.fork() == 0:
    sys.argv[1:] = args.split()
    launch.parse(sys.argv)
    os._exit(0)
  print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
MISTAKES = {
  (CONFIG, '--workdir=x', '--config.data.kk=3'): "config.data 'kk'.* d, depth",
  (CONFIG, '--workdir=x', '--config.techer.width=3'): "mean 'teacher'",
  (CONFIG, '--workdir=x', '--config.seed.x=3'): 'config.seed has no fields',
  (CONFIG, '--workdir=x', '--config.teacher=abc'): 'config.teacher is a block',
  (CONFIG, '--workdir=x', '--config.batch_size=many'): 'many: .*whole number',
  (CONFIG, '--workdir=x', '--config.batch_size', '1.5'): '=1.5: .*whole number',
  (CONFIG, '--workdir=x', '--config.hard_labels=maybe'): 'true or false',
  ('--config=experiments/none.py', '--workdir=x'): 'none.py',
  (CONFIG, '--workdri=x'): 'mean: workdir',
  (CONFIG,): '--workdir is missing',
  ('--config=setup_none.py', '--workdir=x'): 'setup_none.py: there is no such',
  (f'{CONFIG}:tiny', '--workdir=x', '--config.data'): 'config.data is a block',
  (CONFIG, '--workdir='): '--workdir is missing',
  (CONFIG, '--workdir=x', '--config.extracted.law=sparse'): (
    'law is now config.extracted.projection'
  ),
  (CONFIG, '--workdir=x', '--config.seed=1', '--config.seed'): 'seed',
  ('--config=launch.py', '--workdir=x'): 'does not define get_config',
  ('--config=tests/broken_config.py', '--workdir=x'): (
    'line 5 of tests/broken_config.py raises ZeroDivisionError: division'
  ),
}


def start(*args):
  return subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=280,
    check=False,
  )


class LaunchTest(parameterized.TestCase):
  def workdir(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  @parameterized.parameters(
    ((f'{CONFIG}:extrakted',), "mean 'extracted'"),
    ((CONFIG, '--compare=one_shot,two_shot'), "mean 'one_shot'"),
    ((CONFIG, '--compare=one_shot,one_shot'), 'one_shot twice'),
    ((CONFIG, '--config.teacher.folder=typo'), 'folder=typo does not exist'),
    ((CONFIG, '--dry_run='), '--dry_run= is empty'),
    ((CONFIG, '--dry_run=cpu', '--cache_targets=x'), 'leave --cache_targets'),
    ((CONFIG, '--dry_run=cpu', '--config.cache.folder=x'), 'and cache.folder'),
    ((CONFIG, '--dry_run=nowhere'), 'nowhere'),
    ((f'{CONFIG}:supervised', '--cache_targets=x'), 'no targets to store'),
  )
  def test_a_mistake_is_one_line(self, args, message):
    workdir = self.workdir()
    done = start('launch.py', *args, f'--workdir={workdir}')
    self.assertEqual(done.returncode, 2)
    self.assertNotIn('Traceback', done.stderr)
    self.assertIn(message, done.stderr.splitlines()[-1])
    self.assertStartsWith(done.stderr.splitlines()[-1], 'Error: ')
    self.assertFalse(workdir.exists())

  def test_a_mistake_in_a_flag_is_one_line(self):
    done = start('-c', PARSE, *(' '.join(args) for args in MISTAKES))
    self.assertEqual(done.stdout.split(), ['2'] * len(MISTAKES), done.stderr)
    lines = done.stderr.splitlines()
    for line, message in zip(lines, MISTAKES.values(), strict=True):
      self.assertRegex(line, f'^Error: .*{message}')

  def test_help_shows_the_commands_and_the_flags(self):
    done = start('launch.py', '--help')
    self.assertEqual(done.returncode, 0, done.stderr)
    lines = done.stdout.splitlines()
    commands = [line for line in lines if line.startswith('python launch.py')]
    self.assertLen(commands, 4)
    for flag in (
      'config',
      'workdir',
      'compare',
      'dry_run',
      'cache_targets',
      'coordinator',
      'num_processes',
      'process_id',
    ):
      self.assertRegex(done.stdout, rf'\n  --{flag}: [A-Z]')

  def test_the_log_is_of_this_package(self):
    """And of the level that is asked for."""
    args = (f'{CONFIG}:supervised,tiny', '--config.num_steps=10')
    usual, quiet = (
      start('launch.py', *args, f'--workdir={self.workdir()}/{i}', *more)
      for i, more in enumerate(((), ('--verbosity=-1',)))
    )
    for done in (usual, quiet):
      self.assertEqual(done.returncode, 0, done.stderr)
    self.assertNotEmpty(usual.stderr)
    self.assertNotIn('orbax', usual.stderr)
    self.assertLess(len(usual.stderr.splitlines()), 30, usual.stderr)
    self.assertEmpty(quiet.stderr)

  def test_a_dry_run_needs_no_workdir(self):
    two = hasattr(os, 'sched_getaffinity') and len(os.sched_getaffinity(0)) > 1
    done = start(
      'launch.py',
      f'{CONFIG}:one_shot,tiny',
      '--dry_run=cpu',
      # Refused where there is one device.
      *(['--config.mesh.cpu_devices=2', '--config.mesh.data=2'] if two else ()),
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = [line.split()[1] for line in done.stdout.splitlines() if line]
    self.assertEqual(rows.count('labels'), 2)
    self.assertEqual(rows.count('output'), 2)

  def test_extracted_solves_what_one_shot_does_not(self):
    """The paper's claim, small: parity of 4 of 30 bits, the same steps."""
    workdir = self.workdir()
    done = start(
      'launch.py',
      CONFIG,
      f'--workdir={workdir}',
      '--compare=one_shot,extracted',
      '--config.data.d=30',
      '--config.data.k=4',
      '--config.num_seeds=3',
      '--config.num_steps=1000',
      '--config.teacher.width=500',
      '--config.data.eval_size=1024',
      '--config.save_every=500',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = [
      [cell.strip() for cell in line.split('|')[1:3]]
      for line in done.stdout.splitlines()
      if line.startswith('|')
    ]
    self.assertIn(['extracted', '3 of 3'], rows)
    self.assertIn(['one_shot', '0 of 3'], rows)
    lines = (workdir / 'comparison.csv').read_text().splitlines()[1:]
    for line in lines:
      method, _, _, _, accuracy, *_ = line.split(',')
      if method == 'one_shot':
        self.assertLess(float(accuracy), 0.8)
