"""The logic of the peers' benchmark, at tiny sizes."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from cxjax import errors
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import compare as compare
from experiments.benchmarks.peers import environments as environments
from experiments.benchmarks.peers import page as page
from experiments.benchmarks.peers import products as products
from experiments.benchmarks.peers import protocol as protocol
from experiments.benchmarks.peers import serve as serve
from experiments.benchmarks.peers import sides as sides

TINY, FULL = cases_lib.SIZES['tiny'], cases_lib.FULL


class Halves(protocol.Loop):
  """A peer whose losses are halves."""

  def step(self, number):
    return 0.5**number


def job(case='parity'):
  return protocol.Job(pathlib.Path(), TINY[case], '')


class PeerTest(absltest.TestCase):
  """Answers of the process of a peer."""

  def setUp(self):
    super().setUp()
    module = mock.Mock(make=Halves)
    self.enter_context(
      mock.patch.object(serve.importlib, 'import_module', return_value=module)
    )
    self.peer = serve.Peer('halves', job())

  def test_starts_checks_and_runs(self):
    found = self.peer.start()
    self.assertEqual(
      found, {'seeds': 1, 'unit': 1, 'lookahead': 1, 'limit': serve.FOREVER}
    )
    found = self.peer.check(5)
    self.assertEqual(found['losses'], [1, 0.5, 0.25, 0.125, 0.0625])
    self.assertGreaterEqual(found['compile'], 0)
    self.assertLessEqual({'seconds', 'cpu'}, self.peer.run(3).keys())
    self.assertIsNone(self.peer.whole(1.0))
    self.assertGreater(self.peer.memory(), 1)

  def test_batches_come_again(self):
    trainer = Halves(job())
    losses = trainer.losses(trainer.job.case.drawn + 1)
    self.assertEqual(losses[-1], losses[0])


class ProductsTest(parameterized.TestCase):
  """The products of a step, counted by hand."""

  def test_parity(self):
    found = products.of_case(FULL['parity'], lookahead=100)
    self.assertEqual(
      found,
      [
        (0.01, 1, 100, 100, 50_000),
        (0.01, 1, 100, 50_000, 2),
        (1, 1, 1, 100, 1_000),
        (1, 1, 100, 1, 1_000),
        (1, 1, 1, 1_000, 2),
        (1, 1, 1_000, 1, 2),
        (1, 1, 1, 2, 1_000),
      ],
    )

  @parameterized.parameters(
    # Hidden: no head, and the teacher's layer is projected.
    ('parity_hidden', 2 * (100 * 50_000 + 50_000 * 1_000 + 2 * 100 * 1_000)),
    # Stored: the student alone.
    ('parity_stored', 2 * (2 * 100 * 1_000 + 3 * 2 * 1_000)),
  )
  def test_flops_of_parity(self, case, flops):
    found = products.of_case(FULL[case], lookahead=1)
    self.assertEqual(sum(each.flops for each in found), flops)

  def test_flops_of_a_decoder(self):
    case = FULL['decoder']
    rows = case.batch * case.inputs
    forward = lambda model: (
      rows
      * (
        model.depth * (12 * model.width**2 + 2 * case.inputs * model.width)
        + model.width * case.classes
      )
    )
    found = products.of_case(case, lookahead=1)
    self.assertEqual(
      sum(each.flops for each in found),
      2 * (forward(case.teacher) + 3 * forward(case.student)),
    )

  def test_flops_of_a_llama(self):
    case = FULL['llama']
    rows, ids = case.batch * case.inputs, case.classes
    forward = lambda width: (
      # Queries and the output; keys and values of half the heads; the MLP.
      rows * 4 * ((2 + 1 + 12) * width**2 + 2 * case.inputs * width)
      + rows * width * ids
    )
    found = products.of_case(case, lookahead=1)
    self.assertEqual(
      sum(each.flops for each in found), 2 * (forward(128) + 3 * forward(48))
    )

  def test_parameters(self):
    self.assertEqual(
      products.parameters(FULL['parity']), 100 * 1_000 + 1_000 + 2_000 + 2
    )
    self.assertEqual(
      products.parameters(FULL['llama']), 2 * 2_048 * 48 + 4 * 15 * 48**2
    )


@dataclasses.dataclass
class Side:
  losses: tuple[float, ...]
  seeds: int = 1
  compile: float = 1.0
  first_step: float = 2.0


class CompareTest(absltest.TestCase):
  def test_losses_that_differ_are_named_and_not_timed(self):
    losses = tuple(np.ones(3))
    found = compare._check(
      {
        'ours 1': Side(losses),
        'same': Side((1.0, 1.0, 1.00001)),
        'other': Side((1.0, 1.1, 1.0)),
      }
    )
    self.assertEqual(list(found), ['other'])
    self.assertIn('the losses differ at step 1: 1.1', found['other'])
    with self.assertRaisesRegex(errors.UserError, 'ours 8: the losses differ'):
      compare._check({'ours 1': Side(losses), 'ours 8': Side((1.0, 2.0, 1.0))})

  def test_rows_of_what_was_timed(self):
    rounds = [
      {'side': side, 'us': us, 'cpu us': 2 * us}
      for side, times in (('ours 1', (1, 2, 3)), ('b', (4, 8, 10)))
      for us in times
    ]
    after = {'ours 1': {'memory': 5, 'whole': 1e-5}}
    after['b'] = {'memory': 6, 'whole': None}
    ours, b = compare._summary(
      {'ours 1': Side(()), 'b': Side(())}, rounds, after, limit=1e-6
    )
    self.assertEqual(
      (ours['us'], ours['times ours'], ours['share']), (2, 1, 0.5)
    )
    self.assertAlmostEqual(ours['whole us'], 10)
    self.assertEqual(
      (b['us'], b['low'], b['high'], b['times ours']), (8, 4, 10, 4)
    )
    self.assertIsNone(b['whole us'])
    rows = [{'case': 'parity', 'busy': 1.5, **row} for row in (ours, b)]
    rows.append({'case': 'parity', 'busy': 1.5, 'side': 'c', 'note': 'cannot'})
    options = compare.Options('tiny', ['b'], 3, pathlib.Path())
    text = page.render(rows, options, 100)
    self.assertIn('kept 1.5 of its cores busy', text)
    self.assertRegex(text, r'\| b +\| 8 \(4\.\.10\) +\| 4 ')
    self.assertIn('- c: cannot', text)
    self.assertNotIn(
      'not quiet', page.render([{**rows[0], 'busy': 0}], options, 9)
    )
    self.assertEqual(list(page.records(rows)[2]), list(page.FIELDS))


class EnvironmentTest(absltest.TestCase):
  def test_a_peer_that_does_not_install_is_told_by_pip(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    peer = environments.Peer('x', 'x', (('no_such_package',),))

    def run(command, stdout, **_):
      if 'pip' in command:
        stdout.write('Looking.\nERROR: No matching distribution.\n')
        stdout.flush()
        raise environments.subprocess.CalledProcessError(1, command)
      (folder / 'x').mkdir()

    with (
      mock.patch.object(environments.subprocess, 'run', side_effect=run),
      self.assertRaisesRegex(
        environments.NotInstalled,
        'pip install no_such_package: ERROR: No matching distribution',
      ),
    ):
      environments.python_of(peer, folder)

  def test_an_environment_is_made_once(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    peer = environments.Peer('x', 'x', (('a',), ('--no-deps', 'b')))
    make = lambda *_, **__: (folder / 'x').mkdir(exist_ok=True)
    run = mock.patch.object(environments.subprocess, 'run', side_effect=make)
    with run as called:
      for _ in range(2):
        python = environments.python_of(peer, folder)
      self.assertEqual(python, str(folder / 'x' / 'bin' / 'python'))
      self.assertEqual(called.call_count, 3)
      environments.python_of(dataclasses.replace(peer, packages=()), folder)
      self.assertEqual(called.call_count, 4)
    same = environments.Peer('ours', '', ())
    self.assertEqual(environments.python_of(same, folder), sys.executable)


class Fake:
  """A side that does not run in a process."""

  seeds = unit = lookahead = 1
  limit, cpu, compile, first_step, losses = 64, 0.1, 1.0, 2.0, ()

  def __init__(self, factor):
    self.factor = factor

  def check(self, num_steps):
    self.losses = (1.0,) * (num_steps - 1) + (self.factor,)

  def seconds(self, num_steps):
    return 1e-3 * num_steps

  def whole(self, seconds):
    return 2e-3

  def memory(self):
    return 100.0


class CaseTest(absltest.TestCase):
  @pytest.mark.slow
  def test_sides_are_timed_or_left_out(self):
    def started(module, job, variant, python):
      self.assertEqual(job, pathlib.Path('work/jobs/tiny/parity'))
      if module == 'keras':
        raise sides.Left('cannot do it: no layers')
      factor = 2.0 if variant == 'fused' else 1.0
      return contextlib.nullcontext(Fake(factor))

    def python_of(peer, folder):
      self.assertEqual(folder, pathlib.Path('work/environments'))
      if peer.module == 'trl':
        raise environments.NotInstalled('no such version')
      return 'python'

    limit = {'seconds': 5e-4, 'note': 'products'}
    for module, name, fake in (
      (sides, 'started', started),
      (environments, 'python_of', python_of),
      (compare, '_write_job', mock.Mock()),
      (compare.limit_lib, 'measure', mock.Mock(return_value=limit)),
    ):
      self.enter_context(mock.patch.object(module, name, fake))
    names = ['pytorch', 'keras', 'trl']
    options = compare.Options('tiny', names, 2, pathlib.Path('work'))
    rows = compare.compare(TINY['parity'], options)
    timed = [row['side'] for row in rows if 'us' in row]
    self.assertEqual(
      timed, ['ours 1', 'ours 2', 'pytorch eager', 'pytorch compiled', 'limit']
    )
    self.assertEqual(rows[0]['share'], 0.5)
    notes = {row['side']: row['note'] for row in rows if 'note' in row}
    self.assertEqual(notes['keras'], 'cannot do it: no layers')
    self.assertEqual(notes['trl'], 'does not install: no such version')
    self.assertIn('differ at step 99', notes['pytorch fused'])


@pytest.mark.slow
class ProcessTest(absltest.TestCase):
  def test_a_peer_that_is_not_there_is_left_out(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    fields = dataclasses.asdict(TINY['parity'])
    (folder / 'job.json').write_text(json.dumps(fields))
    with (
      self.assertRaisesRegex(sides.Left, 'failed: ModuleNotFoundError'),
      sides.started('missing', folder, ''),
    ):
      pass


@pytest.mark.slow
class AgreementTest(absltest.TestCase):
  """Ours and PyTorch have the same losses on the same job."""

  def job(self, case):
    """The folder of a job, and the modules of ours and of PyTorch."""
    ours, pytorch = (
      importlib.import_module(f'{serve.PACKAGE}.{name}')
      for name in ('ours', 'pytorch')
    )
    folder = pathlib.Path(self.create_tempdir().full_path)
    ours.write_job(TINY[case], folder)
    return folder, ours, pytorch

  def test_a_hidden_stage(self):
    pytest.importorskip('torch')
    folder, ours, pytorch = self.job('parity_hidden')
    want = ours.Ours(protocol.Job.read(folder, '1'))
    got = pytorch.make(protocol.Job.read(folder, 'eager')).losses(4)
    np.testing.assert_allclose(got, want.losses(4), rtol=1e-5)
    want.run(want.unit)

  def test_llama_is_that_of_transformers(self):
    pytest.importorskip('transformers')
    folder, ours, pytorch = self.job('llama')
    want = ours.Ours(protocol.Job.read(folder, '1')).losses(4)
    for variant in ('eager', 'fused'):
      peer = pytorch.make(protocol.Job.read(folder, variant))
      np.testing.assert_allclose(peer.losses(4), want, rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
