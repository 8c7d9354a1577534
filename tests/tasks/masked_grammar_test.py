"""Tests of masked-token prediction on sentences of a grammar."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.data import grammar as grammars
from cxjax.tasks import masked_grammar

NUM = 64

batch_of = jax.jit(masked_grammar.MaskedGrammar.batch, static_argnums=(0, 3))


def make(name='cfg3b', start=16, mask_rate=0.3):
  return masked_grammar.make(grammar=name, start=start, mask_rate=mask_rate)


@functools.cache
def sample(name='cfg3b', start=16):
  """A task and a batch of `NUM` sequences."""
  task = make(name, start)
  batch = batch_of(task, jax.random.key(1), 0, NUM)
  return task, jax.tree.map(np.asarray, batch)


def restore(batch):
  """The sequences before they were masked."""
  batch = jax.tree.map(np.asarray, batch)
  tokens = batch['x']['tokens'].copy()
  row, slot = np.nonzero(batch['weights'])
  tokens[row, batch['x']['target_positions'][row, slot]] = batch['y'][row, slot]
  return tokens


class BatchTest(parameterized.TestCase):
  @parameterized.parameters(('cfg3b', 16), ('cfg3f', 18))
  @pytest.mark.slow
  def test_shapes_and_types(self, name, start):
    task, batch = sample(name, start)
    long, slots = task.length, task.slots
    shapes = {
      'x': {
        'tokens': ((NUM, long), np.int32),
        'mask': ((NUM, long), np.bool_),
        'target_positions': ((NUM, slots), np.int32),
      },
      'y': ((NUM, slots), np.int32),
      'weights': ((NUM, slots), np.float32),
    }
    found = jax.tree.map(lambda x: (x.shape, x.dtype.type), batch)
    self.assertEqual(found, shapes)
    self.assertEqual(long, task.grammar.max_length + 1)
    self.assertEqual((task.vocab_size, task.num_classes), (8, 8))

  @parameterized.parameters(('cfg3b', 16), ('cfg3f', 18))
  def test_unmasked_sequences_are_bos_and_a_sentence(self, name, start):
    task, batch = sample(name, start)
    tokens = restore(batch)
    np.testing.assert_array_equal(tokens[:, 0], masked_grammar.BOS)
    np.testing.assert_array_equal(tokens > 0, batch['x']['mask'])
    for row in tokens[:24]:
      self.assertIsNotNone(task.grammar.parse(row[row > 0][1:]))

  def test_masked_sequences(self):
    _, batch = sample()
    tokens = batch['x']['tokens']
    np.testing.assert_array_equal(tokens[:, 0], masked_grammar.BOS)
    np.testing.assert_array_equal(tokens > 0, batch['x']['mask'])
    self.assertContainsSubset(
      np.unique(tokens[:, 1:]), [0, 1, 2, 3, masked_grammar.MASK]
    )

  def test_masked_at_the_rate(self):
    _, batch = sample()
    num = batch['x']['mask'].sum() - NUM  # Without BOS.
    share = batch['weights'].sum() / num
    self.assertLess(abs(share - 0.3), 5 * np.sqrt(0.3 * 0.7 / num))
    full = batch['weights'] > 0
    self.assertTrue((batch['x']['target_positions'][full] > 0).all())
    self.assertContainsSubset(np.unique(batch['y'][full]), [1, 2, 3])

  def test_random_terminals_are_all_three(self):
    _, batch = sample()
    row, slot = np.nonzero(batch['weights'])
    seen = batch['x']['tokens'][row, batch['x']['target_positions'][row, slot]]
    changed = (seen != masked_grammar.MASK) & (seen != batch['y'][row, slot])
    self.assertEqual(set(seen[changed].tolist()), {1, 2, 3})

  @pytest.mark.slow
  def test_key_and_step_name_the_batch(self):
    task, key = make(), jax.random.key(3)
    first, same = (batch_of(task, key, 5, NUM) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    for k, step in ((key, 6), (jax.random.key(4), 5)):
      other = batch_of(task, k, step, NUM)
      self.assertFalse(np.array_equal(restore(first), restore(other)))
      self.assertFalse(
        np.array_equal(
          first['x']['target_positions'], other['x']['target_positions']
        )
      )

  @pytest.mark.slow
  def test_the_held_out_set_is_the_first_batch_of_its_key(self):
    task, key = make(), jax.random.key(1)
    found = task.held_out(key, NUM)
    want = batch_of(task, key, 0, NUM)
    jax.tree.map(np.testing.assert_array_equal, found, want)

  def test_equal_tasks_are_one_task(self):
    self.assertLen({make(), make(), make(start=17)}, 2)


class ErrorTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('grammar', dict(name='cfg3'), "'cfg3'.*cfg3b"),
    ('start', dict(start=5), 'data.start=5'),
    ('rate', dict(mask_rate=1.2), r'data.mask_rate=1.2 must be in \(0, 1\)'),
  )
  def test_refuses(self, kwargs, message):
    with self.assertRaisesRegex(errors.UserError, message):
      make(**kwargs)

  def test_refuses_other_terminals(self):
    other = grammars.Grammar(((9, ((4, 1),)),), start=9, terminals=(1, 4))
    with self.assertRaisesRegex(errors.UserError, r'\(1, 4\).*\(1, 2, 3\)'):
      masked_grammar.MaskedGrammar(other, 0.3)


if __name__ == '__main__':
  absltest.main()
