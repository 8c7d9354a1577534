"""launch.py as people call it: a process, its exit code, what it prints."""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import parameterized
import pytest

from cxjax import files
from cxjax.configs import identity
from cxjax.methods import registry
from experiments import parity_mlp
import processes

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
CONFIG = '--config=experiments/parity_mlp.py'
SEARCH = f'{CONFIG} --workdir=DIR --compare=one_shot,extracted --rates='

# Command lines, and what their one line says; DIR is a new folder, OTHER that
# of another teacher.
MISTAKES = {
  f'{CONFIG} --workdir=DIR --config.data.kk=3': "config.data 'kk'.* d, depth",
  f'{CONFIG} --workdir=DIR --config.techer.width=3': "mean 'teacher'",
  f'{CONFIG} --workdir=DIR --config.seed.x=3': 'config.seed has no fields',
  f'{CONFIG} --workdir=DIR --config.teacher=abc': 'config.teacher is a block',
  f'{CONFIG} --workdir=DIR --config.batch_size=many': 'many: .*whole number',
  f'{CONFIG} --workdir=DIR --config.batch_size 1.5': '=1.5: .*whole number',
  f'{CONFIG} --workdir=DIR --config.hard_labels=maybe': 'true or false',
  f'{CONFIG} --workdir=DIR --config.extracted.law=sparse': (
    'law is now config.extracted.projection'
  ),
  f'{CONFIG}:tiny --workdir=DIR --config.data': 'config.data is a block',
  f'{CONFIG} --workdir=DIR --config.num_steps=0': 'num_steps=0 must be a whole',
  '--config=experiments/none.py --workdir=DIR': 'none.py: there is no such',
  '--config=tests/processes.py --workdir=DIR': 'does not define get_config',
  '--config=tests/broken_config.py --workdir=DIR': (
    'line 5 of tests/broken_config.py raises ZeroDivisionError: division'
  ),
  f'{CONFIG} --workdri=DIR': 'mean: workdir',
  CONFIG: '--workdir is missing',
  f'{CONFIG} --workdir=': '--workdir is missing',
  '--workdir=DIR': '--config is missing',
  f'{CONFIG} --workdir=DIR word': "Unknown argument 'word'",
  f'{CONFIG} --workdir=gs://bucket/run': 'no local path. Mount the bucket',
  f'{CONFIG}:extrakted --workdir=DIR': "mean 'extracted'",
  f'{CONFIG} --workdir=DIR --compare=one_shot,two_shot': "mean 'one_shot'",
  f'{CONFIG} --workdir=DIR --compare=one_shot,one_shot': 'one_shot twice',
  f'{CONFIG} --workdir=DIR --compare=one_shot --cache_targets=DIR': (
    'leave --compare out'
  ),
  f'{CONFIG} --workdir=DIR --config.teacher.folder=typo': (
    'folder=typo does not exist'
  ),
  f'{CONFIG}:tiny --workdir=DIR --config.teacher.folder=tests': (
    'folder=tests holds no teacher: there is no config.json. Give the folder'
  ),
  f'{CONFIG} --workdir=DIR --coordinator=localhost:1': '--num_processes is mis',
  f'{CONFIG} --workdir=DIR --cache_targets=gs:/b': (
    "--cache_targets 'gs:/b' is no local"
  ),
  f'{CONFIG} --workdir=DIR --cache_targets=launch.py/x': (
    'launch.py is no folder'
  ),
  f'{CONFIG} --workdir=DIR --cache_targets=DIR/teacher': (
    'lies in .*teacher, the folder of a run'
  ),
  f'{CONFIG} --workdir=DIR --cache_targets=': '--cache_targets= is empty',
  f'{CONFIG} --workdir=DIR --compare=': '--compare= is empty',
  f'{CONFIG} --workdir=DIR --rates=1e-3': '--rates compares .* give --compare',
  f'{CONFIG} --workdir=DIR --compare=one_shot --rates=': '--rates= is empty',
  f'{SEARCH}1e-3,fast': "--rates=1e-3,fast: 'fast' must be a positive number",
  f'{SEARCH}1e-3,0': "'0' must be a positive number, as 0.003",
  f'{SEARCH}1e-3,nan': "'nan' must be a positive",
  f'{SEARCH}1e-3,inf': "'inf' must be a positive",
  f'{SEARCH}0.001,1e-3': '--rates=0.001,1e-3 has 0.001 twice: give each',
  f'{SEARCH}1e-3 --equal=flop': "--equal 'flop'.*mean 'flops'",
  f'{SEARCH}1e-3 --equal=': "--equal ''.*flops, student_flops, steps",
  f'{SEARCH}1e-3 --num_steps=0': '--num_steps=0 must be a whole number, at',
  f'{SEARCH}1e-3 --num_steps=many': 'many must be an integer',
  f'{SEARCH}1e-3 --budget=0': '--budget=0.0 must be',
  f'{SEARCH}1e-3 --budget=2': '--budget=2.0 must be',
  f'{SEARCH}1e-3 --budget=nan': '--budget=nan must be',
  f'{SEARCH}1e-3 --dry_run=cpu': '--rates prints its cost .* leave --dry_run',
  f'{SEARCH}1e-3 --coordinator=localhost:1 --num_processes=2': (
    '--rates searches in one process: leave --coordinator out'
  ),
  f'{SEARCH}1e-3 --config.patience=2': 'patience=2 is not for --rates',
  f'{SEARCH}1e-3,3e-3,1e-2 --num_steps=3': "'one_shot', of 1 stage, 3 steps",
  f'{CONFIG} --workdir=DIR --equal=flops': '--equal is for .* give --rates',
  f'{CONFIG} --workdir=DIR --num_steps=9': '--num_steps is for .* give --rates',
  f'{CONFIG} --workdir=DIR --budget=0.1 --compare=one_shot': (
    '--budget is for a search .* give --rates'
  ),
  f'{CONFIG} --workdir=/dev/null/x': '/dev/null is no folder',
  f'{CONFIG} --workdir=DIR/checkpoints/000000010': 'within the checkpoint',
  f'{CONFIG} --workdir=DIR --config.teacher.folder=~/x': 'begins with ~',
  f'{CONFIG} --workdir=DIR --config.cache.folder=launch.py': 'is no folder',
  f'{CONFIG} --workdir=DIR --num_processes=two': 'two must be an integer',
  f'{CONFIG} --workdir=DIR --config.stop_at=': 'stop_at= must be a number',
  f'{CONFIG} --workdir=DIR --config.progressive.scores[9]=1': 'no element 9',
  f'{CONFIG} --dry_run=cpu --process_id=0': 'leave --process_id out',
  f'{CONFIG} --dry_run=cpu --compare=one_shot,one_shot': 'one_shot twice',
  f'{CONFIG} --dry_run=': '--dry_run= is empty',
  f'{CONFIG} --dry_run=cpu --cache_targets=DIR': 'leave --cache_targets',
  f'{CONFIG} --dry_run=cpu --config.cache.folder=DIR': 'and cache.folder',
  f'{CONFIG} --dry_run=nowhere': 'nowhere',
  f'{CONFIG} --dry_run=cpu --config.teacher.folder=typo': (
    'folder=typo does not exist'
  ),
  f'{CONFIG}:tiny --dry_run=cpu --config.teacher.folder=tests': (
    'folder=tests holds no teacher: there is no config.json'
  ),
  f'{CONFIG}:tiny --dry_run=cpu --config.teacher.folder=OTHER': (
    'another configuration. What differs: teacher.width .12 there, 16 here.'
  ),
  f'{CONFIG}:supervised --workdir=DIR --cache_targets=DIR': (
    'no targets to store'
  ),
}


def start(*args):
  return subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    env=processes.environment(),
    capture_output=True,
    text=True,
    timeout=280,
    check=False,
  )


class MistakesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    new = str(cls.folder / 'new')
    other = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    config = parity_mlp.tiny()
    config.teacher.width = 12
    files.write_json(other / 'config.json', identity.teacher_config(config))
    full = lambda args: args.replace('DIR', new).replace('OTHER', str(other))
    cls.done = {
      args: processes.forked('launch.py', *full(args).split())
      for args in MISTAKES
    }

  @parameterized.parameters(*MISTAKES)
  def test_is_one_line(self, args):
    code, _, said = self.done[args]
    self.assertEqual(code, 2, said)
    self.assertNotIn('Traceback', said)
    *_, last = said.splitlines()
    self.assertRegex(last, f'^Error: .*{MISTAKES[args]}')

  def test_leaves_nothing(self):
    self.assertEmpty(list(self.folder.iterdir()))


class LaunchTest(parameterized.TestCase):
  def workdir(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  def test_a_mistake_is_one_line_and_code_2(self):
    workdir = self.workdir()
    done = start('launch.py', f'{CONFIG}:extrakted', f'--workdir={workdir}')
    self.assertEqual(done.returncode, 2)
    self.assertStartsWith(done.stderr, 'Error: Unknown method or size')
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertFalse(workdir.exists())

  def test_help_shows_the_commands_and_the_flags(self):
    done = start('launch.py', '--help')
    self.assertEmpty(done.stderr)
    lines = done.stdout.splitlines()
    commands = [line for line in lines if line.startswith('python launch.py')]
    self.assertLen(commands, 6)
    self.assertLessEqual(max(map(len, lines)), 80)
    methods = done.stdout.split('Methods: ')[1].split('.')[0]
    self.assertCountEqual(re.findall(r'\w+', methods), registry.METHODS)
    for flag in (
      'config',
      'workdir',
      'compare',
      'rates',
      'equal',
      'num_steps',
      'budget',
      'dry_run',
      'cache_targets',
      'coordinator',
      'num_processes',
      'process_id',
    ):
      self.assertRegex(done.stdout, rf'\n  --{flag}: [A-Z]')

  def test_the_log_is_of_this_package(self):
    """And of the level that is asked for."""
    args = (f'{CONFIG}:supervised,tiny', f'--workdir={self.workdir()}')
    args = ('launch.py', *args, '--config.num_steps=10')
    code, _, said = processes.forked(*args)
    self.assertEqual(code, 0, said)
    self.assertIn('The plan of', said)
    self.assertNotIn('orbax', said)
    self.assertLess(len(said.splitlines()), 40, said)
    code, _, said = processes.forked(*args, '--verbosity=-1')
    # Without the flag it would say that the run is finished.
    self.assertEqual((code, said), (0, ''))

  def test_a_dry_run_needs_no_workdir(self):
    two = hasattr(os, 'sched_getaffinity') and len(os.sched_getaffinity(0)) > 1
    code, table, said = processes.forked(
      'launch.py',
      f'{CONFIG}:one_shot,tiny',
      '--dry_run=cpu',
      # Refused where there is one device.
      *(['--config.mesh.cpu_devices=2', '--config.mesh.data=2'] if two else ()),
      COLUMNS='200',  # Its tables stay whole.
    )
    self.assertEqual(code, 0, said)
    rows = [line.split()[1] for line in table.splitlines() if line]
    self.assertEqual(rows.count('labels'), 2)
    self.assertEqual(rows.count('output'), 2)

  def test_a_search_prints_its_cost_and_what_it_found(self):
    workdir = self.workdir()
    code, printed, said = processes.forked(
      'launch.py',
      f'{CONFIG}:tiny',
      f'--workdir={workdir}',
      '--compare=supervised,one_shot',
      '--rates=1e-3,1e-2',
      '--num_steps=8',
      '--equal=steps',
      '--config.teacher.num_steps=10',
    )
    self.assertEqual(code, 0, said)
    *parts, last = printed.rstrip().split('\n\n')
    lines = '\n'.join(parts).splitlines()
    self.assertLessEqual(max(map(len, lines)), 80)
    self.assertEqual(last, f'The curves: {workdir / "comparison.png"}')
    self.assertStartsWith(parts[0], 'Comparison by held-out accuracy')
    self.assertIn('one_shot in 8 steps', parts[0].replace('\n', ' '))
    text = (workdir / 'comparison.md').read_text()
    advice = text.rstrip().split('\n\n')[-1]
    self.assertEqual(parts[-1].replace('\n', ' '), advice)
    self.assertEqual(printed.replace('\n', ' ').count(advice), 1)
    self.assertEqual(printed.count('Comparison by'), 1)
    for name in ('comparison.csv', 'comparison.png', 'search.csv'):
      self.assertTrue((workdir / name).exists())

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
      '--config.num_steps=600',
      '--config.teacher.width=300',
      '--config.data.eval_size=1024',
      '--config.save_every=300',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = [
      [cell.strip() for cell in line.split('|')[1:3]]
      for line in done.stdout.splitlines()
      if line.startswith('|')
    ]
    self.assertIn(['extracted', '3 of 3'], rows)
    self.assertIn(['one_shot', '0 of 3'], rows)
    self.assertIn(f'The curves: {workdir / "comparison.png"}', done.stdout)
    lines = (workdir / 'comparison.csv').read_text().splitlines()[1:]
    for line in lines:
      method, _, _, _, accuracy, *_ = line.split(',')
      if method == 'one_shot':
        self.assertLess(float(accuracy), 0.8)
