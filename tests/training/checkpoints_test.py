"""Checkpoints are read as they were written, or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints
from cxjax.training import metric_log

RECORD = {'stage': 'output', 'score': [0.5, 1.0], 'end': 60}


def items(scale=1.0):
  """A state like that of a run; one item has no arrays."""
  return {
    'params': {'hidden0': {'kernel': scale * jnp.arange(6.0).reshape(2, 3)}},
    'regressor': {},
    'opt_state': (jnp.full(2, 7), {'mu': scale * jnp.ones((2, 3))}),
  }


def templates(tree):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
  )


def digested(*steps):
  return metric_log.digest_records([{'step': step} for step in steps])


def write_metrics(folder, *steps):
  lines = (json.dumps({'step': step}) + '\n' for step in steps)
  (folder / 'metrics.jsonl').write_text(''.join(lines))


DIGESTED = digested(10, 20, 30, 40)


class SavedTest(parameterized.TestCase):
  """A folder with checkpoints 20 and 40; 40 is the best."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.original = root / 'run'
    with checkpoint_writer.CheckpointWriter(cls.original, keep=0) as writer:
      writer.save(20, items(1.0), {**RECORD, **digested(10, 20)})
      local = {'loader-00000': {'taken': 3}}
      record = {**RECORD, **digested(10, 20, 30, 40)}
      writer.save(40, items(2.0), record, local, best=True)
    write_metrics(cls.original, 10, 20, 30, 40)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'run'
    shutil.copytree(self.original, self.folder)
    self.newest = self.folder / 'checkpoints' / '000000040'


class ScheduledTest(SavedTest):
  @pytest.mark.slow
  def test_every_record_names_those_before_it(self):
    self.assertEqual(checkpoints.scheduled(self.folder), [20, 40])
    self.assertEqual(
      checkpoints.read_record(self.folder, 20)['scheduled'], [20]
    )
    self.assertEqual(checkpoints.scheduled(self.folder / 'none'), [])

  @parameterized.parameters(
    ('000000020', '000000020 is missing'),
    ('000000020/record.json', 'record.json is missing'),
  )
  def test_one_that_is_missing(self, name, said):
    path = self.folder / 'checkpoints' / name
    path.rename(self.folder / 'elsewhere')
    self.assertEqual(checkpoints.scheduled(self.folder), [20, 40])
    checkpoints.require(self.folder, 40)
    with self.assertRaisesRegex(
      errors.UserError, f'{said}: checkpoint 20 .* remove .*train it again'
    ):
      checkpoints.require(self.folder, 20)

  def test_one_whose_record_is_damaged(self):
    path = self.folder / 'checkpoints/000000020/record.json'
    path.write_text(path.read_text()[:20])
    with self.assertRaisesRegex(errors.UserError, 'record.json is damaged'):
      checkpoints.require(self.folder, 20)


class NewestTest(SavedTest):
  def test_a_folder_without_checkpoints(self):
    folder = self.folder / 'none'
    self.assertEqual(checkpoints.steps(folder), [])
    self.assertIsNone(checkpoints.latest(folder))

  def test_the_newest(self):
    self.assertEqual(checkpoints.steps(self.folder), [20, 40])
    self.assertEqual(checkpoints.latest(self.folder), 40)
    with checkpoint_writer.CheckpointWriter(self.folder, keep=0) as writer:
      writer.save(60, items(), RECORD)
    self.assertEqual(checkpoints.latest(self.folder), 60)

  def test_folders_that_orbax_has_not_finished_are_no_checkpoints(self):
    path = self.folder / 'checkpoints' / '000000060.orbax-checkpoint-tmp'
    shutil.copytree(self.newest, path)
    self.assertEqual(checkpoints.steps(self.folder), [20, 40])
    self.assertEqual(checkpoints.latest(self.folder), 40)

  @pytest.mark.slow
  def test_damage_to_any_file_is_noticed(self):
    found = [p for p in self.newest.rglob('*') if p.is_file()]
    self.assertGreater(len(found), 10)
    for file in found:
      content = file.read_bytes()
      middle = len(content) // 2
      flipped = bytearray(content)
      flipped[middle] ^= 1
      for damaged in (content[:middle], b'', bytes(flipped), None):
        if damaged is None:
          file.unlink()
        else:
          file.write_bytes(damaged)
        with self.assertLogs(level='WARNING') as log:
          self.assertEqual(checkpoints.latest(self.folder), 20)
        self.assertRegex(
          log.output[0], f'Checkpoint 40 is passed over: .*{file.name}'
        )
        file.write_bytes(content)
    self.assertEqual(checkpoints.latest(self.folder), 40)

  def test_another_file_is_noticed(self):
    (self.newest / 'params' / 'more').write_bytes(b'1')
    self.assertRegex(
      checkpoints.fault(self.folder, 40), '/000000040/params/more is damaged'
    )

  def test_a_file_that_cannot_be_read_is_a_fault(self):
    def refuse(*_):
      raise OSError(5, os.strerror(5), 'x/data')

    with mock.patch.object(checkpoints.hashlib, 'file_digest', refuse):
      self.assertEqual(
        checkpoints.fault(self.folder, 40),
        'x/data cannot be read (Input/output error)',
      )

  @parameterized.parameters('score', 'sha256', 'best')
  def test_a_record_that_was_changed_is_noticed(self, key):
    path = self.newest / 'record.json'
    text = path.read_text()
    changed = {
      'score': text.replace('0.5', '0.6'),
      'sha256': text.replace('"sha256": "', '"sha256": "0'),
      'best': text.replace('"best": true', '"best": false'),
    }[key]
    self.assertNotEqual(changed, text)
    path.write_text(changed)
    self.assertRegex(
      checkpoints.fault(self.folder, 40), 'record.json is damaged'
    )
    with self.assertRaisesRegex(errors.UserError, 'record.json is damaged'):
      checkpoints.read_record(self.folder, 40)
    with self.assertRaisesRegex(errors.UserError, 'the best.*is damaged'):
      checkpoints.require_best(self.folder, 40, 40)

  @parameterized.parameters(
    (40, 40, '000000040', True),
    (40, 20, '000000040', False),
    (20, 20, '000000020', False),  # 40 is good, and was better.
    (60, 20, '000000020', True),
  )
  def test_the_best_is_gone(self, step, best, gone, lost):
    checkpoints.require_best(self.folder, step, best)
    (self.folder / 'checkpoints' / gone).rename(self.folder / 'elsewhere')
    raised = self.assertRaisesRegex(
      errors.UserError, f'Checkpoint {best} .*the best.*Restore it, or remove'
    )
    with raised if lost else contextlib.nullcontext():
      checkpoints.require_best(self.folder, step, best)

  @parameterized.parameters(((10, 20, 40), 20), ((10, 20, 30), 20), ((), None))
  def test_a_checkpoint_needs_its_records_of_metrics(self, logged, expected):
    write_metrics(self.folder, *logged)
    with self.assertLogs(level='WARNING') as log:
      self.assertEqual(checkpoints.latest(self.folder), expected)
    self.assertRegex(log.output[0], 'metrics.jsonl lacks some of its 4 records')

  @parameterized.parameters(
    ('{"step": 10}\n{"step": 20, "eval/accuracy": [1.0]}\n', 'was edited'),
    ('{"step": 20}\n{"step": 10}\n', 'was edited'),
    ('{"step": 10}\n{"step": 20, "loss": NaN}\n', 'was edited'),
    ('{"step": 10}\n{"step": 10}\n{"step": 20}\n', 'more than its 4'),
  )
  def test_records_of_metrics_that_were_edited(self, first, said):
    last = '{"step": 30}\n{"step": 40}\n'
    (self.folder / 'metrics.jsonl').write_text(first + last)
    with self.assertLogs(level='WARNING') as log:
      self.assertIsNone(checkpoints.latest(self.folder))
    self.assertRegex(log.output[0], f'Checkpoint 40 .*metrics.jsonl .*{said}')

  def test_an_edit_after_a_checkpoint_leaves_that_one(self):
    write_metrics(self.folder, 10, 20, 40, 30)
    with self.assertLogs(level='WARNING'):
      self.assertEqual(checkpoints.latest(self.folder), 20)

  def test_a_record_without_a_digest_of_the_metrics(self):
    """As an earlier version wrote them."""
    with checkpoint_writer.CheckpointWriter(self.folder, keep=0) as writer:
      writer.save(60, items(), {**RECORD, 'records': 4})
    with self.assertLogs(level='WARNING') as log:
      self.assertEqual(checkpoints.latest(self.folder), 40)
    self.assertIn('has no digest of the records', log.output[0])

  def test_later_records_of_metrics_do_no_harm(self):
    write_metrics(self.folder, 10, 20, 30, 40, 50)
    self.assertEqual(checkpoints.latest(self.folder), 40)

  def test_removed(self):
    checkpoints.remove(self.folder, 40)
    self.assertEqual(checkpoints.steps(self.folder), [20])
    checkpoints.remove(self.folder, 40)

  def test_a_link_is_removed_and_what_it_leads_to_stays(self):
    path = checkpoints.step_folder(self.folder, 40)
    moved = path.rename(self.folder / 'moved')
    path.symlink_to(moved)
    self.assertEqual(checkpoints.latest(self.folder), 40)
    checkpoints.remove(self.folder, 40)
    self.assertEqual(checkpoints.steps(self.folder), [20])
    self.assertTrue((moved / 'record.json').exists())

  def test_other_things_among_them(self):
    folder = self.folder / 'checkpoints'
    for name in ('5', '²', '٠٠٠٠٠٠٠٠٥', '0000000005', 'new'):
      (folder / name).mkdir()
    (folder / '000000060').mkdir()
    (folder / '000000070').write_text('a file')
    self.assertEqual(checkpoints.steps(self.folder), [20, 40, 60, 70])
    self.assertEqual(checkpoints.latest(self.folder), 40)
    checkpoints.remove(self.folder, 70)
    self.assertEqual(checkpoints.steps(self.folder), [20, 40, 60])


class RestoreTest(SavedTest):
  def test_items_are_read_apart(self):
    tree = {'params': items()['params']}
    found = checkpoints.restore(self.folder, 40, templates(tree))
    chex.assert_trees_all_equal(found, {'params': items(2.0)['params']})
    found = checkpoints.restore(self.folder, 20, templates(items()))
    chex.assert_trees_all_equal(found, items())

  @pytest.mark.devices(2)
  def test_shardings_are_those_of_the_template(self):
    mesh = jax.make_mesh((2,), ('data',))
    sharding = jax.NamedSharding(mesh, jax.P('data'))
    tree = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      items(),
    )
    found = checkpoints.restore(self.folder, 40, tree)
    chex.assert_trees_all_equal(found, items(2.0))
    for leaf in jax.tree.leaves(found):
      self.assertEqual(leaf.sharding, sharding)

  def test_values_beside_the_arrays(self):
    record = checkpoints.read_record(self.folder, 40)
    self.assertEqual(record, record | RECORD | {'step': 40, **DIGESTED})
    self.assertEqual((record['temporary'], record['best']), (False, True))
    self.assertEqual(
      checkpoints.read_local(self.folder, 40, 'loader-00000'), {'taken': 3}
    )

  def test_a_missing_checkpoint(self):
    with self.assertRaisesRegex(
      errors.UserError, r'has no checkpoint 30. It has: 20, 40\.'
    ):
      checkpoints.restore(self.folder, 30, {})
    with self.assertRaisesRegex(errors.UserError, r'It has: none\.'):
      checkpoints.restore(self.folder / 'none', 30, {})

  def test_a_damaged_checkpoint(self):
    (self.newest / 'params' / '_METADATA').write_text('')
    with self.assertRaisesRegex(
      errors.UserError, 'cannot be used: .*params/_METADATA is damaged'
    ):
      checkpoints.restore(self.folder, 40, templates(items()))

  @parameterized.parameters(
    (lambda leaf: leaf[:1], r'kernel is \[\[2, 3\], .*expected \[\[1, 3\]'),
    (lambda leaf: leaf.astype('bfloat16'), "expected .*'bfloat16'"),
  )
  def test_another_shape_or_dtype(self, change, message):
    tree = {'params': jax.tree.map(change, items()['params'])}
    with self.assertRaisesRegex(errors.UserError, message):
      checkpoints.restore(self.folder, 40, templates(tree))

  def test_arrays_that_are_absent_on_one_side(self):
    tree = {'params': {'hidden1': {'kernel': jnp.zeros((2, 3))}}}
    with self.assertRaisesRegex(
      errors.UserError, r'params/hidden0/kernel is \[.*, expected absent'
    ):
      checkpoints.restore(self.folder, 40, templates(tree))
    tree['params'] |= items()['params']
    with self.assertRaisesRegex(
      errors.UserError, r'params/hidden1/kernel is absent, expected \['
    ):
      checkpoints.restore(self.folder, 40, templates(tree))

  def test_nothing_is_pickled(self):
    for path in self.newest.rglob('*'):
      if path.is_file():
        self.assertNotIn(b'numpy', path.read_bytes()[:64])


class FingerprintTest(parameterized.TestCase):
  def test_depends_on_values_and_paths(self):
    tree = {'a': np.ones(2, np.float32), 'b': np.zeros(2, np.float32)}
    self.assertEqual(
      checkpoints.fingerprint(tree),
      checkpoints.fingerprint(jax.tree.map(jnp.asarray, tree)),
    )
    others = (
      {'a': tree['b'], 'b': tree['a']},
      {'a': tree['a'], 'c': tree['b']},
      {**tree, 'b': tree['b'] + np.float32(1e-7)},
    )
    found = {checkpoints.fingerprint(one) for one in (tree, *others)}
    self.assertLen(found, 4)
