"""launch.py as people call it: a process, its exit code, what it prints."""

import pathlib
import subprocess
import sys

from absl.testing import parameterized

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = '--config=experiments/parity_mlp.py'


def launch(*args):
  return subprocess.run(
    [sys.executable, 'launch.py', *args],
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
    ((CONFIG, '--config.data.kk=3'), 'kk'),
    ((CONFIG, '--config.batch_size=many'), 'many'),
    (('--config=experiments/none.py',), 'none.py'),
    ((CONFIG, '--compare=one_shot,two_shot'), "mean 'one_shot'"),
  )
  def test_a_mistake_is_one_line(self, args, message):
    workdir = self.workdir()
    done = launch(*args, f'--workdir={workdir}')
    self.assertEqual(done.returncode, 2)
    self.assertNotIn('Traceback', done.stderr)
    self.assertIn(message, done.stderr.splitlines()[-1])
    self.assertStartsWith(done.stderr.splitlines()[-1], 'Error: ')
    self.assertFalse(workdir.exists())

  def test_extracted_solves_what_one_shot_does_not(self):
    """The paper's claim, small: parity of 4 of 30 bits, the same steps."""
    workdir = self.workdir()
    done = launch(
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
