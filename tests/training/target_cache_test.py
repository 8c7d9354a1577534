"""Stored targets are the live ones, and no others are served."""

import dataclasses
import functools
import json
import pathlib
import shutil
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from cxjax.configs import builders
from cxjax.training import target_cache
from cxjax import errors
from cxjax.configs import experiment
from cxjax.training import metric_log
from cxjax.training import compiled_steps
from cxjax.training import trainer
from experiments import parity_mlp
from experiments import text_bert
import faults
import mesh_test
import text_test

METHODS = ('extracted', 'one_shot', 'progressive')
# Stages end inside a chunk of 10 steps.
STEPS = (25, 35)


def mlp(method):
  config = parity_mlp.tiny(method)
  config.extracted.steps = config.progressive.steps = STEPS
  config.top_k = 2 if method == 'one_shot' else 0
  config.share_batches = method != 'progressive'
  return config


def losses(folder):
  return [row['loss'] for row in metric_log.read(folder)]


class CacheTest(parameterized.TestCase):
  """Without a feed: the batches come from a key."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.live = cls.root / 'live'
    experiment.train_teacher(mlp('extracted'), cls.live)
    cls.store(mlp('extracted'), 'extracted')
    cls.whole = cls.root / 'whole'

  @classmethod
  def store(cls, config, name):
    config.teacher.folder = str(cls.live / 'teacher')
    return experiment.cache_targets(config, cls.root / 'none', cls.root / name)

  def stored(self, method='extracted', name='extracted', **fields):
    """The config of a run from a cache, and a workdir without a teacher."""
    config = mlp(method)
    config.cache.folder = str(self.root / name)
    config.update_from_flattened_dict(fields)
    return config, self.fresh()

  def fresh(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def copied(self):
    folder = self.fresh() / 'cache'
    shutil.copytree(self.root / 'extracted', folder)
    return folder

  def live_recipe(self, method='extracted', **fields):
    config = mlp(method)
    teacher = experiment.train_teacher(config, self.live)
    spec = builders.student_spec(config, teacher)
    return dataclasses.replace(spec, period=60, **fields)

  @parameterized.parameters(*METHODS)
  def test_is_the_live_run(self, method):
    live = experiment.run(mlp(method), self.live)
    if method != 'extracted':
      self.store(mlp(method), method)
    config, _ = self.stored(method, method)
    workdir = self.whole
    summary = experiment.run(config, workdir)
    self.assertFalse((workdir / 'teacher').exists())
    np.testing.assert_allclose(
      losses(workdir / method), losses(self.live / method), rtol=1e-4
    )
    for name in ('accuracy', 'loss'):
      np.testing.assert_allclose(
        summary['final'][name], live['final'][name], rtol=1e-4
      )
    self.assertNotIn('agreement', summary['final'])
    for mine, theirs in zip(summary['stages'], live['stages'], strict=True):
      self.assertEqual(mine['teacher_flops'], 0)
      self.assertGreater(theirs['teacher_flops'], 0)
      self.assertEqual(mine['student_flops'], theirs['student_flops'])

  def test_batches_come_again(self):
    """Both stages pass over 12 batches, and begin in the middle of them."""
    config = mlp('extracted')
    config.cache.batches = 12
    summary = self.store(config, 'twelve')
    self.assertEqual([s['batches'] for s in summary['stages']], [12, 12])
    config, workdir = self.stored(name='twelve', **{'cache.batches': 12})
    experiment.run(config, workdir)
    folder = self.fresh()
    spec = dataclasses.replace(self.live_recipe(), period=12)
    trainer.fit(spec, folder, 'live')
    np.testing.assert_allclose(
      losses(workdir / 'extracted'), losses(folder), rtol=1e-4
    )

  @parameterized.parameters(3, 6)
  def test_an_interrupted_run_ends_where_a_whole_one_does(self, rows):
    """Checkpoints at 20, in the hidden stage, and at 40, in the other."""
    config, other = self.stored()
    experiment.run(config, self.whole)
    with faults.killed_after(rows):
      experiment.run(config, other)
    experiment.run(config, other)
    config.teacher.folder = str(self.live / 'teacher')
    folders = self.whole / 'extracted', other / 'extracted'
    self.assertEqual(*map(metric_log.read, folders))
    arrays = functools.partial(faults.arrays, config)
    chex.assert_trees_all_equal(*map(arrays, folders))

  def test_no_teacher_is_held(self):
    """Though one was there for the check."""
    config, workdir = self.stored()
    config.teacher.folder = str(self.live / 'teacher')
    before = {id(array) for array in jax.live_arrays()}
    held, args = [], []
    advance = compiled_steps.CompiledSteps.advance

    def note(self, planned, schedule, states, start, stop, *rest):
      held.extend(a.shape for a in jax.live_arrays() if id(a) not in before)
      args.append((self._spec.teacher, self._teacher, *rest[:2]))
      return advance(self, planned, schedule, states, start, stop, *rest)

    with mock.patch.object(compiled_steps.CompiledSteps, 'advance', note):
      experiment.run(config, workdir)
    self.assertEqual(set(args), {(None,) * 4})
    self.assertIn((2, 8, 8), held)  # The students' kernels,
    self.assertNotIn((8, 16), held)  # not the teacher's.

  def test_bytes_a_token(self):
    config = mlp('extracted')
    config.cache.batches = 12
    config.cache.dtype = 'bfloat16'
    config.student.width = 256  # Else it is what an empty file takes up.
    summary = self.store(config, 'bfloat16')
    paths = sorted((self.root / 'bfloat16').glob('*.array_record'))
    sizes = [path.stat().st_size for path in paths]
    self.assertEqual([s['bytes'] for s in summary['stages']], sizes)
    tokens = 12 * 8  # Batches, examples of each; two seeds share them.
    self.assertEqual(summary['stages'][0]['tokens'], tokens)
    self.assertEqual(summary['bytes_per_token'], sum(sizes) / (2 * tokens))
    self.assertEqual(summary['stages'][0]['raw_bytes'], tokens * 1_024)
    # Of 1,024 bytes zstd leaves four fifths; a file has 64 kB of its own.
    self.assertBetween((sizes[0] - 2**16) / tokens, 500, 1_500)
    self.assertIn('bytes a token', target_cache.show(summary))
    found = target_cache.load(self.root / 'bfloat16')
    self.assertEqual(found.read(0, 3)[0]['want'].dtype, 'bfloat16')

  @parameterized.parameters(
    ({'seed': 1}, r'seed \(0 there, 1 here\)'),
    ({'data.k': 3}, r'data.k \(2 there, 3 here\)'),
    ({'teacher.num_steps': 50}, r'teacher.num_steps \(60 there'),
    ({'batch_size': 16}, r'batch_size \(8 there, 16 here\)'),
    ({'num_seeds': 3}, r'num_seeds \(2 there, 3 here\)'),
    ({'share_batches': False}, r'share_batches \(True there'),
    ({'extracted.projection': 'sparse'}, r'stages.hidden0.law \(gaussian there'),
    ({'extracted.norm': 'layer'}, r'stages.hidden0.norm \(none there'),
    ({'extracted.shared_projection': True}, r'stages.hidden0.shared \(False there'),
    ({'top_k': 1}, r'stages.output.top_k \(0 there, 1 here\)'),
    ({'extracted.checkpoint': 20}, r'hidden0.checkpoint \(None there, 20'),
    ({'student.width': 9}, r'hidden0.projection \(\[16, 8\] there, \[16, 9'),
    ({'method': 'one_shot'}, r'method \(extracted there, one_shot here\)'),
    ({'extracted.steps': (30, 30)}, "'hidden0' reads 5 batches .* number .25"),
    ({'cache.batches': 30}, "'hidden0' reads .*|'output' reads"),
    ({'cache.batches': 61}, 'cache.batches=61 must be from 1 to num_steps=60'),
    ({'cache.fingerprint': 'x'}, 'cache.fingerprint=x, but that of'),
    ({'method': 'supervised'}, 'supervised learns the labels'),
    ({'cache.folder': '/none'}, '/none holds no finished cache'),
  )
  def test_another_run_is_refused_by_field(self, fields, message):
    config, workdir = self.stored(**fields)
    with self.assertRaisesRegex(errors.UserError, message):
      experiment.run(config, workdir)
    self.assertEmpty(list(workdir.iterdir()))

  def test_what_changes_no_target_is_served(self):
    config, _ = self.stored()
    teacher = experiment.train_teacher(mlp('extracted'), self.live)
    config.optimizer.learning_rate, config.alpha = 0.1, 0.5
    config.extracted.loss, config.loss = 'cosine', 'reverse_kl'
    config.extracted.freeze = True
    spec = builders.student_spec(config, teacher)
    here = builders.stored_config(config, spec)
    target_cache.load(self.root / 'extracted').require_same(here)

  def test_a_finished_cache_is_not_made_again(self):
    summary = self.root / 'extracted' / 'summary.json'
    before = summary.stat().st_mtime_ns
    self.assertEqual(
      self.store(mlp('extracted'), 'extracted'),
      json.loads(summary.read_text()),
    )
    self.assertEqual(summary.stat().st_mtime_ns, before)
    config = mlp('extracted')
    config.cache.dtype = 'bfloat16'
    with self.assertRaisesRegex(
      errors.UserError, r'dtype \(float32 there, bfloat16 here\)'
    ):
      self.store(config, 'extracted')

  def test_both_folders_are_refused(self):
    config, workdir = self.stored()
    with self.assertRaisesRegex(errors.UserError, 'give one of the two'):
      experiment.cache_targets(config, workdir, workdir / 'cache')
    with self.assertRaisesRegex(errors.UserError, 'leave --compare out'):
      experiment.compare(config, ['extracted'], workdir)

  def test_a_flipped_byte_is_refused(self):
    """Any byte of a record; ArrayRecord's own and ours."""
    folder = self.copied()
    path = folder / 'stage0.array_record'
    content = path.read_bytes()
    record = target_cache.load(folder).read(0, 3)[0]['want'].tobytes()
    at = content.index(record[:4])  # It does not shrink: it is as it was.
    flipped = bytearray(content)
    flipped[at + 2] ^= 1
    path.write_bytes(flipped)
    found = target_cache.load(folder)
    found.read(0, 4)
    with self.assertRaisesRegex(errors.UserError, 'Batch 3 in .*is damaged'):
      found.read(0, 3)
    config, workdir = self.stored()
    config.cache.folder = str(folder)
    with self.assertRaisesRegex(errors.UserError, 'Batch 3 in .*is damaged'):
      experiment.run(config, workdir)

  def test_records_in_another_place_are_refused(self):
    folder = self.copied()
    one, two = (folder / f'stage{i}.array_record' for i in range(2))
    content = one.read_bytes(), two.read_bytes()
    self.assertEqual(*map(len, content))
    two.write_bytes(content[0])
    with self.assertRaisesRegex(errors.UserError, 'Batch 25 in .*is damaged'):
      target_cache.load(folder).read(1, 25)

  @parameterized.parameters('cut', 'gone', 'index', 'unfinished', 'garbage')
  def test_a_damaged_cache_is_refused(self, damage):
    folder = self.copied()
    path, index = folder / 'stage1.array_record', folder / 'index.json'
    message = 'stage1.array_record.*is damaged. Remove .*cache_targets='
    if damage == 'cut':
      path.write_bytes(path.read_bytes()[:-1])
      message = 'has 131071 bytes, not 131072: it is damaged'
    elif damage == 'gone':
      path.unlink()
    elif damage == 'garbage':
      path.write_bytes(bytes(path.stat().st_size))
    elif damage == 'index':
      index.write_text(index.read_text().replace('"k": 2', '"k": 3'))
      message = 'index.json is damaged'
    else:
      index.unlink()
      message = 'holds no finished cache'
    with self.assertRaisesRegex(errors.UserError, message):
      target_cache.load(folder)

  def test_an_unfinished_cache_is_made_again(self):
    folder = self.copied()
    (folder / 'index.json').unlink()
    (folder / 'stage0.array_record').write_bytes(b'half')
    self.store(mlp('extracted'), folder)
    target_cache.load(folder).read(0, 3)

  def test_another_teacher_is_refused(self):
    found = target_cache.load(self.root / 'extracted')
    spec = self.live_recipe()
    target_cache.check(found, spec)
    params = jax.tree.map(lambda leaf: leaf * 1.1, spec.teacher.params)
    other = dataclasses.replace(spec.teacher, params=params)
    other = dataclasses.replace(spec, teacher=other)
    with self.assertRaisesRegex(errors.UserError, r'parameters.final \('):
      target_cache.check(found, other)
    # As if they were not looked at.
    same = mock.patch.object(
      target_cache, '_digests', lambda _: found.record['parameters']
    )
    with same, self.assertRaisesRegex(errors.UserError, 'what the teacher say'):
      target_cache.check(found, other)
    keys = spec.stage_keys[::-1]
    with self.assertRaisesRegex(errors.UserError, 'what the teacher say'):
      target_cache.check(found, dataclasses.replace(spec, stage_keys=keys))
    keys = spec.stage_keys[:1]
    other = dataclasses.replace(spec, data_keys=keys, teacher=None)
    with self.assertRaisesRegex(errors.UserError, 'not the one that is drawn'):
      target_cache.check(found, dataclasses.replace(other, absent=spec.teacher))

  @parameterized.parameters(
    (0, 5, 10, [0, 1, 2, 3, 4]),
    (8, 5, 10, [0, 1, 2, 8, 9]),
    (8, 25, 10, list(range(10))),
  )
  def test_numbers(self, begin, steps, period, expected):
    found = target_cache.numbers(begin, steps, period)
    self.assertEqual(found.tolist(), expected)


class IdentityTest(parameterized.TestCase):
  def test_a_layer_of_the_student_may_come_twice(self):
    found = []
    for first in ('hidden0', 'hidden1'):
      config = parity_mlp.tiny('extracted')
      config.teacher.depth = 2
      config.extracted.layers = ((first, 'hidden0'), ('hidden1', 'hidden0'))
      spec = builders.student_spec(config, builders.abstract_teacher(config))
      found.append(builders.stored_config(config, spec))
    self.assertLen(found[0]['stages'], 3)
    self.assertNotEqual(*found)


class TextTest(parameterized.TestCase):
  """With a feed: rows are stored with their targets."""

  def config(self, folder):
    (folder / 'text.txt').write_text('\n\n'.join(text_test.DOCUMENTS))
    config = text_bert.tiny('extracted')
    config.data.source = f'files:{folder}/text.txt'
    config.top_k = 4
    config.extracted.steps, config.num_steps = (5, 15), 20
    return builders.resolve_paths(config, folder)

  def test_rows_and_targets_are_the_live_ones(self):
    """The students share batches, and have projections of their own."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    config = self.config(folder)
    teacher = mesh_test.random_teacher(config)
    spec = builders.student_spec(config, teacher)
    spec = dataclasses.replace(spec, period=20)
    target_cache.write(folder / 'cache', spec, {}, 'float32')
    found = target_cache.load(folder / 'cache')
    run = compiled_steps.CompiledSteps(spec)
    planned = spec.planned()
    matrices = [run.matrices(one, i) for i, one in enumerate(planned)]
    with (
      jax.set_mesh(spec.mesh),
      spec.feed() as live,
      target_cache.Feed(found, spec) as stored,
    ):
      for start, stop, stage in ((0, 5, 0), (5, 10, 1), (10, 20, 1)):
        rows, wants = stored.rows(start), stored.wants(start)
        for step in range(start, stop):
          here = lambda leaf, at=step % 10: leaf[at]
          chex.assert_trees_all_equal(
            *(jax.tree.map(here, some) for some in (rows, live.rows(step)))
          )
          seen = planned[stage], step, jax.tree.map(here, rows)
          _, want = run.look(*seen, teacher.params, matrices[stage])
          chex.assert_trees_all_close(
            jax.tree.map(here, wants), want, rtol=1e-4
          )
    self.assertEqual(wants['classes'].shape, (10, 1, 8, 11, 4))
    self.assertEqual(rows['tokens'].shape, (10, 1, 8, 16))
    self.assertEqual(found.read(0, 0)[0]['want'].shape, (2, 8, 16, 16))
