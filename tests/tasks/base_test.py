"""Tests of the task protocol and the registry."""

import dataclasses
import functools
import itertools
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import ml_collections
import numpy as np
import pytest

from cxjax import errors
from cxjax import registration
from cxjax import tasks
from cxjax.parallel import mesh as mesh_lib
from cxjax.tasks import base
import documents
from tests.tasks import own_task

KEY = jax.random.key(0)
SIZE = 6


@functools.cache
def text_folder():
  folder = pathlib.Path(absltest.TEST_TMPDIR.value) / 'base_test'
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'text.txt').write_text('\n\n'.join(documents.DOCUMENTS))
  return folder


def data_of(name, **fields):
  """A data block of a registered task."""
  blocks = {
    'parity': dict(d=9, k=2, depth=2, support='random'),
    'parity_tokens': dict(d=9, k=2, depth=2, support='random'),
    'pcfg': dict(grammar='cfg3b', start=13, mask_rate=0.3),
    'text': dict(
      source=f'files:{text_folder()}/text.txt',
      vocab_size=280,
      length=16,
      mask_rate=0.2,
      tokenizer='',
      held_out=0.1,
      whole_files=False,
      tfds_folder='',
      folder='',
      shards=1,
      fingerprints=dict(corpus='', tokenizer=''),
    ),
    'majority': dict(d=9),
  }
  blocks['causal_text'] = blocks['text']
  return ml_collections.ConfigDict({**blocks[name], **fields})


@functools.cache
def task_of(name):
  return tasks.make(name, data_of(name), KEY)


TEXTS = ('text', 'causal_text')
NAMES = ('parity', 'parity_tokens', 'pcfg', *TEXTS, 'majority')


def shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def rows_of(task):
  """Argument `rows` of `task.batch`, for `SIZE` examples."""
  if task.host_spec(SIZE) is None:
    return SIZE
  return next(iter(task.host_batches(SIZE, seed=0)))


@pytest.mark.slow
class ProtocolTest(parameterized.TestCase):
  def test_every_registered_task_is_tested_here(self):
    # Other tests of the same process may have registered theirs.
    ours = [
      name
      for name, entry in tasks.TASKS.items()
      if registration.origin(entry.make).startswith('cxjax.')
    ]
    self.assertContainsSubset(ours, NAMES)

  @parameterized.parameters(*NAMES)
  def test_is_a_task(self, name):
    task = task_of(name)
    self.assertIsInstance(task, tasks.Task)
    self.assertContainsSubset(('accuracy', 'loss', 'perplexity'), task.metrics)
    decides = 'perplexity' if name == 'causal_text' else 'accuracy'
    self.assertEqual(task.primary_metric, decides)
    self.assertEqual(task.shards, 1)

  @parameterized.parameters(*NAMES)
  def test_a_batch_has_the_declared_inputs_and_classes(self, name):
    task = task_of(name)
    rows = rows_of(task)
    make = jax.jit(lambda step: task.batch(KEY, step, rows))
    batch = make(3)
    if task.inputs:
      self.assertSameElements(batch['x'], task.inputs)
      self.assertEqual(batch['x']['tokens'].shape, (SIZE, task.length))
      self.assertLess(batch['x']['tokens'].max(), task.vocab_size)
    self.assertBetween(batch['y'].min(), 0, task.num_classes - 1)
    self.assertBetween(batch['y'].max(), 0, task.num_classes - 1)
    other = make(4)
    pairs = zip(*map(jax.tree.leaves, (batch, other)), strict=True)
    drawn = any((a != b).any() for a, b in pairs)
    self.assertEqual(drawn, name != 'causal_text')  # Its rows are its batch.

  @parameterized.parameters(*NAMES)
  def test_the_held_out_set_depends_on_its_key(self, name):
    task = task_of(name)
    one, same = (task.held_out(KEY, SIZE) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    other = task.held_out(jax.random.key(1), SIZE)
    self.assertLen(jax.tree.leaves(one['x'])[0], SIZE)
    first, second = (jax.tree.leaves(batch) for batch in (one, other))
    pairs = zip(first, second, strict=True)
    drawn = any((a != b).any() for a, b in pairs)
    self.assertEqual(drawn, name != 'causal_text')

  @parameterized.parameters(*NAMES)
  def test_the_abstract_task_has_the_same_shapes(self, name):
    task = task_of(name)
    # A file that is not there is not read.
    fields = {'source': 'files:/nowhere'} if name in TEXTS else {}
    abstract = tasks.make_abstract(name, data_of(name, **fields), KEY)
    self.assertIsInstance(abstract, tasks.Task)
    self.assertEqual(abstract.inputs, task.inputs)
    self.assertEqual(abstract.num_classes, task.num_classes)
    found = jax.eval_shape(lambda key: abstract.held_out(key, SIZE), KEY)
    self.assertEqual(shapes(found), shapes(task.held_out(KEY, SIZE)))
    spec = abstract.host_spec(SIZE)
    if spec is not None:
      self.assertEqual(shapes(spec), shapes(rows_of(task)))

  @parameterized.parameters('parity', 'parity_tokens', 'pcfg', 'majority')
  def test_a_synthetic_task_reads_nothing(self, name):
    task = task_of(name)
    self.assertIsNone(task.host_spec(SIZE))
    self.assertEqual(task.fingerprints, {})
    task.check(7)
    folder = pathlib.Path(self.create_tempdir().full_path)
    task.save(folder)
    self.assertEmpty(list(folder.iterdir()))
    with self.assertRaisesRegex(TypeError, 'reads nothing'):
      task.host_batches(SIZE, seed=0)


@dataclasses.dataclass(frozen=True)
class Other(tasks.SyntheticTask):
  num_classes = 2
  metrics = ('f1',)


class RegistryTest(parameterized.TestCase):
  def register(self, name, *args, **kwargs):
    self.addCleanup(tasks.TASKS.pop, name)
    tasks.register(name, *args, **kwargs)

  @pytest.mark.slow
  def test_a_task_of_ones_own(self):
    task = tasks.make('majority', data_of('majority'), KEY)
    self.assertIsInstance(task, own_task.Majority)
    batch = task.batch(KEY, 0, 500)
    self.assertBetween(batch['y'].mean(), 0.4, 0.6)
    with self.assertRaisesRegex(errors.UserError, 'data.d=4 must be odd'):
      tasks.make('majority', data_of('majority', d=4), KEY)

  @parameterized.parameters(tasks.make, tasks.make_abstract)
  def test_an_unknown_name(self, make):
    message = "Unknown task 'majorty'. Did you mean 'majority'?.*parity_tokens"
    with self.assertRaisesRegex(errors.UserError, message):
      make('majorty', data_of('majority'), KEY)

  def test_a_name_that_is_taken(self):
    message = "task 'parity' already, by cxjax.tasks.parity"
    with self.assertRaisesRegex(errors.UserError, message):
      tasks.register('parity', own_task.make)
    # The same file may run again, as a cell of a notebook does.
    tasks.register('majority', own_task.make)

  def test_a_task_that_is_not_whole(self):
    self.register('test_object', lambda data, key: object())
    message = "'test_object' has no num_classes, .*batch.*SyntheticTask"
    with self.assertRaisesRegex(errors.UserError, message):
      tasks.make('test_object', data_of('majority'), KEY)

  def test_a_primary_metric_that_is_none(self):
    self.register('test_other', lambda data, key: Other())
    message = "'test_other' has primary_metric='accuracy'.*one of: f1"
    with self.assertRaisesRegex(errors.UserError, message):
      tasks.make('test_other', data_of('majority'), KEY)


class DataBlockTest(parameterized.TestCase):
  def test_paths_of_a_text(self):
    workdir = pathlib.Path('/runs/a')
    data = data_of('text')
    base.resolve_paths('text', data, workdir)
    self.assertEqual(data.folder, '/runs/a/text')
    self.assertEqual(data.tokenizer, '')
    data = data_of('text', folder='/elsewhere')
    base.resolve_paths('text', data, workdir)
    self.assertEqual(data.folder, '/elsewhere')
    kept = base.without_paths('text', data.to_dict())
    self.assertSameElements(set(data) - set(kept), ('folder', 'tokenizer'))
    # As it comes from the config.json of a run.
    data = ml_collections.ConfigDict(kept).lock()
    base.resolve_paths('text', data, workdir)
    self.assertEqual((data.folder, data.tokenizer), ('/runs/a/text', ''))

  def test_paths_of_a_synthetic_task(self):
    data = data_of('parity')
    before = data.to_dict()
    base.resolve_paths('parity', data, pathlib.Path('/runs/a'))
    self.assertEqual(data.to_dict(), before)
    self.assertEqual(base.without_paths('parity', before), before)

  def test_fingerprints(self):
    task, data = task_of('text'), data_of('text')
    base.record_fingerprints(data.lock(), task)
    self.assertEqual(data.fingerprints.to_dict(), task.fingerprints)
    self.assertSameElements(task.fingerprints, ('corpus', 'tokenizer'))
    again = tasks.make('text', data, KEY)
    self.assertEqual(again.fingerprints, task.fingerprints)
    data.fingerprints.corpus = 'abc'
    message = 'data.fingerprints.corpus=abc, but that of the corpus here is '
    with self.assertRaisesRegex(errors.UserError, message):
      tasks.make('text', data, KEY)

  def test_a_synthetic_task_records_no_fingerprint(self):
    data = data_of('parity')
    base.record_fingerprints(data, task_of('parity'))
    self.assertNotIn('fingerprints', data)


class OpenLoaderTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_streams_and_shards(self):
    task = dataclasses.replace(task_of('text'), shards=2)
    mesh = mesh_lib.make({'data': 2}, SIZE)
    with base.open_loader(task, SIZE, [3, 4], 5, mesh) as opened:
      rows = opened.rows(0)
    self.assertEqual(rows['tokens'].shape, (5, 2, SIZE, 16))
    for number, seed in enumerate((3, 4)):
      parts = [
        itertools.islice(task.host_batches(SIZE // 2, seed, (i, 2)), 5)
        for i in range(2)
      ]
      for step, pair in enumerate(zip(*parts, strict=True)):
        want = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pair)
        found = jax.tree.map(lambda leaf: leaf[step, number], rows)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, found, want)

  def test_shards_that_do_not_divide_the_batch(self):
    task = dataclasses.replace(task_of('text'), shards=4)
    mesh = mesh_lib.make({'data': 1}, SIZE)
    with self.assertRaisesRegex(errors.UserError, 'shards=4 must divide the'):
      base.open_loader(task, SIZE, [3], 5, mesh)


if __name__ == '__main__':
  absltest.main()
