"""Tests of masked-token prediction on text."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cxjax import errors
from cxjax import tasks
from cxjax.data import tokenized_corpus
from cxjax.tasks import masked_text
import documents

pytestmark = pytest.mark.slow

LENGTH, SIZE = 24, 4
KEY = jax.random.key(0)


class MaskedTextTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    (cls.root / 'text.txt').write_text('\n\n'.join(documents.DOCUMENTS))
    cls.corpus = tokenized_corpus.load(
      f'files:{cls.root}/text.txt', vocab_size=300, held_out=0.1
    )
    cls.task = masked_text.make(cls.corpus, length=LENGTH, mask_rate=0.2)

  def data(self, **fields):
    return ml_collections.ConfigDict(
      dict(
        source=f'files:{self.root}/text.txt',
        vocab_size=300,
        length=LENGTH,
        mask_rate=0.2,
        tokenizer='',
        held_out=0.1,
        whole_files=False,
        tfds_folder='',
        folder='',
        shards=1,
        **fields,
      )
    )

  def rows(self):
    rows = next(iter(self.task.host_batches(SIZE, seed=0)))
    return jax.tree.map(jnp.asarray, rows)

  def test_masks_are_fresh_and_spare_special_tokens(self):
    rows = self.rows()
    batch = jax.jit(self.task.batch)
    one, two = (batch(KEY, at, rows) for at in range(2))
    self.assertFalse((one['x']['tokens'] == two['x']['tokens']).all())
    special = (rows['segments'] == 0) | (rows['tokens'] == self.task.cls_id)
    kept = one['x']['tokens'] == rows['tokens']
    self.assertTrue(kept[special].all())
    np.testing.assert_array_equal(one['x']['mask'], rows['segments'] > 0)
    at = jnp.take_along_axis(
      rows['tokens'], one['x']['target_positions'], axis=1
    )
    real = one['weights'] > 0
    np.testing.assert_array_equal(at[real], one['y'][real])

  def test_the_held_out_set_is_of_held_out_documents(self):
    rows = self.task.held_out_rows(8)
    held_out = self.task.held_out(KEY, 8)
    want = self.task.batch(KEY, 0, rows)
    jax.tree.map(np.testing.assert_array_equal, held_out, want)
    first = self.corpus.held_out[0][: LENGTH - 1].tolist()
    starts = [row[1 : 1 + len(first)].tolist() for row in rows['tokens']]
    self.assertIn(first, starts)

  def test_the_order_depends_on_the_seed(self):
    one, same, other = (
      next(iter(self.task.host_batches(SIZE, seed)))['tokens']
      for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    self.assertFalse(np.array_equal(one, other))

  def test_the_corpus_is_loaded_once(self):
    load = mock.Mock(wraps=tokenized_corpus.load)
    with mock.patch.object(tokenized_corpus, 'load', load):
      task = tasks.make('text', self.data(), KEY)
      task.held_out(KEY, 8)
      next(iter(task.host_batches(SIZE, seed=0)))
      self.assertSameElements(task.fingerprints, ('corpus', 'tokenizer'))
    load.assert_called_once()

  def test_the_abstract_task_loads_nothing(self):
    with mock.patch.object(tokenized_corpus, 'load', side_effect=OSError):
      task = tasks.make_abstract('text', self.data(), KEY)
    self.assertEqual(task.fingerprints, {})
    self.assertEqual((task.vocab_size, task.num_classes), (300, 300))
    with self.assertRaisesRegex(errors.UserError, 'jax.eval_shape'):
      task.held_out(KEY, 8)  # Zeros, which are no held-out set.
    with self.assertRaisesRegex(AssertionError, 'shapes alone'):
      task.host_batches(SIZE, seed=0)

  def test_is_saved_with_its_tokenizer(self):
    folder = self.root / 'kept'
    self.task.save(folder)
    data = self.data()
    data.folder = str(folder)
    found = tasks.make('text', data, KEY)
    self.assertEqual(found.fingerprints, self.task.fingerprints)
    data.vocab_size = 280  # That of the folder is taken, not a new one.
    with self.assertRaisesRegex(errors.UserError, 'has 300 ids'):
      tasks.make('text', data, KEY)

  @parameterized.parameters((1, 7), (3, 9))
  def test_shards_that_divide_the_batch(self, shards, batch_size):
    task = masked_text.make(
      self.corpus, length=LENGTH, mask_rate=0.2, shards=shards
    )
    task.check(batch_size)

  @parameterized.parameters((3, 8), (0, 8))
  def test_shards_that_do_not_divide_the_batch(self, shards, batch_size):
    task = masked_text.make(
      self.corpus, length=LENGTH, mask_rate=0.2, shards=shards
    )
    message = f'data.shards={shards} must divide the batch_size={batch_size}'
    with self.assertRaisesRegex(errors.UserError, message):
      task.check(batch_size)

  @parameterized.parameters(
    ({'length': 1}, 'data.length=1 must be at least 2'),
    ({'mask_rate': 1.0}, r'data.mask_rate=1.0 must be in \(0, 1\)'),
  )
  def test_refuses(self, kwargs, message):
    kwargs = {'length': LENGTH, 'mask_rate': 0.2, **kwargs}
    with self.assertRaisesRegex(errors.UserError, message):
      masked_text.make(self.corpus, **kwargs)


if __name__ == '__main__':
  absltest.main()
