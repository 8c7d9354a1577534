"""Tests of masked-token prediction."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.data import masking

MASK, LOW, HIGH = 99, 10, 20
ROWS, COLUMNS, SLOTS = 2000, 60, 42

mask = jax.jit(
  functools.partial(masking.mask_tokens, mask_id=MASK, random_ids=(LOW, HIGH)),
  static_argnames='slots',
)


@functools.cache
def masked(rate=0.3, slots=SLOTS, seed=0):
  """Random tokens, which may be masked, and the result."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(LOW, HIGH, (ROWS, COLUMNS)).astype(np.int32)
  maskable = rng.random((ROWS, COLUMNS)) < 0.8
  out = mask(jax.random.key(seed), tokens, maskable, rate=rate, slots=slots)
  return tokens, maskable, jax.tree.map(np.asarray, out)


def chosen(out):
  """The listed positions, `[ROWS, COLUMNS]` bool."""
  found = np.zeros((ROWS, COLUMNS), int)
  row, slot = np.nonzero(out['weights'])
  np.add.at(found, (row, out['target_positions'][row, slot]), 1)
  assert found.max() <= 1
  return found > 0


class MaskTokensTest(parameterized.TestCase):
  def check_share(self, found, p, num):
    self.assertLess(abs(found / num - p), 5 * np.sqrt(p * (1 - p) / num))

  @parameterized.parameters(0.15, 0.3)
  def test_rate(self, rate):
    _, maskable, out = masked(rate)
    picked = chosen(out)
    self.assertFalse(picked[~maskable].any())
    self.check_share(picked.sum(), rate, maskable.sum())
    # No column is favoured, and neighbours are independent.
    columns = picked.sum(0) / maskable.sum(0)
    errors_ = np.sqrt(rate * (1 - rate) / maskable.sum(0))
    self.assertLess((abs(columns - rate) / errors_).max(), 5)
    pairs = maskable[:, :-1] & maskable[:, 1:]
    both = (picked[:, :-1] & picked[:, 1:])[pairs]
    self.check_share(both.sum(), rate**2, len(both))

  def test_replacements_of_chosen_tokens(self):
    tokens, _, out = masked()
    picked = chosen(out)
    before, after = tokens[picked], out['tokens'][picked]
    num = len(before)
    self.check_share((after == MASK).sum(), 0.8, num)
    # A tenth of the random ids are the true one.
    self.check_share((after == before).sum(), 0.1 + 0.1 / 10, num)
    changed = (after != MASK) & (after != before)
    self.check_share(changed.sum(), 0.1 * 9 / 10, num)
    # No id is favoured, whatever the true one is.
    shift = (after - before)[changed] % (HIGH - LOW)
    for value in range(1, HIGH - LOW):
      self.check_share((shift == value).sum(), 1 / 9, changed.sum())
    for value in range(LOW, HIGH):
      found = after[changed] == value
      self.check_share(found.sum(), 1 / 10, changed.sum())
    self.assertContainsSubset(np.unique(after), [*range(LOW, HIGH), MASK])

  def test_other_tokens_are_unchanged(self):
    tokens, _, out = masked()
    picked = chosen(out)
    np.testing.assert_array_equal(out['tokens'][~picked], tokens[~picked])

  @parameterized.parameters(SLOTS, 5)
  def test_slots(self, slots):
    tokens, _, out = masked(slots=slots)
    self.assertEqual(out['target_positions'].shape, (ROWS, slots))
    self.assertEqual(out['labels'].shape, (ROWS, slots))
    self.assertEqual(out['weights'].shape, (ROWS, slots))
    self.assertEqual(out['target_positions'].dtype, np.int32)
    self.assertEqual(out['labels'].dtype, np.int32)
    self.assertEqual(out['weights'].dtype, np.float32)
    full = out['weights'] > 0
    np.testing.assert_array_equal(out['weights'], full)
    true = np.take_along_axis(tokens, out['target_positions'], axis=1)
    np.testing.assert_array_equal(out['labels'], np.where(full, true, 0))
    self.assertFalse(out['target_positions'][~full].any())
    # Full slots come first, in ascending order.
    self.assertTrue((np.diff(out['weights']) <= 0).all())
    both = full[:, 1:]
    self.assertTrue((np.diff(out['target_positions'])[both] > 0).all())

  def test_positions_that_do_not_fit_are_not_masked(self):
    tokens, _, roomy = masked()
    _, _, tight = masked(slots=5)
    count = roomy['weights'].sum(1)
    self.assertGreater((count > 5).mean(), 0.9)
    first = roomy['weights'][:, :5]
    np.testing.assert_array_equal(tight['weights'], first)
    np.testing.assert_array_equal(
      tight['target_positions'], roomy['target_positions'][:, :5]
    )
    kept = chosen(tight)
    np.testing.assert_array_equal(tight['tokens'][~kept], tokens[~kept])
    np.testing.assert_array_equal(tight['tokens'][kept], roomy['tokens'][kept])

  @pytest.mark.slow
  def test_key_names_the_masks(self):
    _, _, first = masked()
    _, _, other = masked(seed=1)
    self.assertFalse(
      np.array_equal(first['target_positions'], other['target_positions'])
    )
    self.assertLen(np.unique(chosen(first), axis=0), ROWS)

  @pytest.mark.slow
  def test_nothing_to_mask(self):
    tokens = jnp.ones((2, 3), jnp.int32)
    out = mask(jax.random.key(0), tokens, tokens < 0, rate=0.9, slots=2)
    np.testing.assert_array_equal(out['tokens'], tokens)
    for name in ('target_positions', 'labels', 'weights'):
      self.assertFalse(out[name].any(), name)


class NumMaskedTest(parameterized.TestCase):
  @parameterized.parameters(
    (72, 0.3, 45),  # 21.6 + 6 * 3.89
    (432, 0.3, 187),  # 129.6 + 6 * 9.52
    (10, 0.5, 10),  # No more than there are.
    (1, 1e-6, 1),
  )
  def test_by_hand(self, length, rate, expected):
    self.assertEqual(masking.num_masked(length, rate), expected)

  @parameterized.parameters(0, 1, -0.1, 1.2, float('nan'))
  def test_refuses_a_rate(self, rate):
    message = rf'^data.mask_rate={rate} must be in \(0, 1\)\.$'
    with self.assertRaisesRegex(errors.UserError, message):
      masking.num_masked(10, rate)


if __name__ == '__main__':
  absltest.main()
