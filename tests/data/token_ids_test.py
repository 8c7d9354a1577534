"""Tests of token ids that no model knows."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import cxjax
from cxjax import errors
from cxjax.api import held_out
from cxjax.data import token_ids

TOKENS = np.array([[1, 2, 3], [4, 5, 0]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])


def changed(place, value, tokens=TOKENS):
  tokens = tokens.copy()
  tokens[place] = value
  return tokens


class IdsTest(parameterized.TestCase):
  def test_known_ids_stay(self):
    batch = {'x': TOKENS}
    for ids in (token_ids.Ids(), token_ids.Ids(6)):
      self.assertIs(ids.checked(batch), batch)

  @parameterized.parameters(6, -1, -100, 2**40)
  def test_others_are_refused(self, value):
    tokens = changed((1, 0), value)
    message = f'0 to 5 of the models: the first is {value}, in example 1.'
    for x in (tokens, {'tokens': tokens, 'mask': MASK}):
      with self.assertRaisesRegex(errors.UserError, message):
        token_ids.Ids(6).checked({'x': x})

  @parameterized.parameters(-1, 3)
  def test_target_positions_are_of_tokens(self, value):
    x = {'tokens': TOKENS, 'target_positions': np.array([[0, 2], [1, value]])}
    message = f'has {value} in example 1; .* are 0 to 2'
    for weights in ({}, {'weights': np.ones((2, 2))}):
      with self.assertRaisesRegex(errors.UserError, message):
        token_ids.Ids(6).checked({'x': x, **weights})
    for weights in (np.array([[1, 1], [1, 0]]), np.array([1, 0])):
      batch = {'x': x, 'weights': weights}
      self.assertIs(token_ids.Ids(6).checked(batch), batch)

  def test_padding_becomes_0(self):
    x = {'tokens': changed((1, 2), -100), 'mask': MASK}
    found = token_ids.Ids(6).checked({'x': x})
    np.testing.assert_array_equal(found['x']['tokens'], TOKENS)

  def test_examples_of_weight_0(self):
    ids, tokens = token_ids.Ids(6), changed((0, 1), 9)
    found = ids.checked({'x': tokens, 'weights': np.array([0.0, 1.0])})
    np.testing.assert_array_equal(found['x'], changed((0, 1), 0))
    marked = {'x': {'tokens': tokens, 'mask': MASK}}
    found = ids.checked({**marked, 'weights': np.array([0.0, 1.0])})
    np.testing.assert_array_equal(found['x']['tokens'], changed((0, 1), 0))
    # A prompt has weight 0 in the loss, and is read.
    weights = np.ones((2, 3))
    weights[0, 1] = 0
    with self.assertRaises(errors.UserError):
      ids.checked({'x': tokens, 'weights': weights})

  def test_unknown_ids_of_any_array_become_0(self):
    tokens = changed((1, 2), 6, changed((0, 0), -1))
    want = changed((1, 2), 0, changed((0, 0), 0))
    for x in (tokens, jnp.asarray(tokens)):
      np.testing.assert_array_equal(token_ids.known(x, 6), want)
      found = token_ids.known({'tokens': x, 'mask': MASK}, 6)
      np.testing.assert_array_equal(found['tokens'], want)
      self.assertIs(found['mask'], MASK)
      self.assertIs(token_ids.known(x, None), x)
    self.assertIs(token_ids.known(MASK * 0.5, 6).dtype, np.dtype(float))

  def test_the_mask_of_a_plan_sees_all_ids(self):
    marked = lambda batch: {
      'x': {'tokens': batch['x'], 'mask': jnp.asarray(batch['x']) >= 0}
    }
    ids, batch = token_ids.Ids(6, marked), {'x': changed((1, 2), -100)}
    self.assertIs(ids.checked(batch), batch)
    with self.assertRaises(errors.UserError):
      ids.checked({'x': changed((1, 2), 6)})

  def test_other_inputs_are_not_tokens(self):
    for x in (TOKENS + 0.5, {'age': TOKENS + 100}, (TOKENS, TOKENS)):
      token_ids.Ids(6).checked({'x': x})

  def test_the_smaller_vocabulary_of_a_plan(self):
    def model(size):
      apply = lambda params, x: (params['e'][x].sum(1), {})
      found = cxjax.from_fn(apply, {'e': np.ones((size, 3), np.float32)})
      abilities = cxjax.Abilities(vocab_size=size)
      return cxjax.ModelAdapter(found.apply, found.params, abilities=abilities)

    plan = cxjax.plan(model(9), model(6), TOKENS, num_steps=2, layers=())
    with self.assertRaisesRegex(errors.UserError, '0 to 5 of the models'):
      held_out.evaluation(plan, changed((0, 0), 7), 'held_out', None)
