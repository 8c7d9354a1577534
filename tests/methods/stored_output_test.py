"""Tests for the targets that are stored of a stage."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import stored_output
from tests.methods import networks

Stage, Term = stage_lib.Stage, stage_lib.Term
STAGE = Stage(
  'joint',
  5,
  (
    Term(target='labels'),
    Term('hidden0', 'hidden1', projection='gaussian'),
    Term(top_k=2),
    Term(loss='mse'),
    Term('hidden1', 'logits', projection='sparse'),
    Term('hidden1', 'logits', regressor=True),
  ),
)


class StoredStageTest(parameterized.TestCase):
  def test_hidden_states_are_stored_once(self):
    """Under the first name; a projected output is stored projected."""
    names = ['output', 'output#2', 'hidden1#2']
    self.assertEqual(list(stored_output.terms(STAGE)), names)
    found = stored_output.stored_stage(STAGE, 'hidden').named_terms
    self.assertEqual(list(found), ['labels', 'hidden0', 'output', 'hidden1'])
    self.assertEqual(found['output'].target, output_split.FEATURES)
    self.assertEqual(found['output'].top_k, 0)
    self.assertTrue(found['output'].all_tokens)
    self.assertEqual(found['hidden1'].projection, 'sparse')
    self.assertEqual(found['hidden1'].target, 'logits')

  def test_others_are_stored_as_they_are(self):
    self.assertIs(stored_output.stored_stage(STAGE, 'logits'), STAGE)
    hidden = Stage('hidden', 5, STAGE.terms[:2])
    self.assertIs(stored_output.stored_stage(hidden, 'hidden'), hidden)
    self.assertEmpty(stored_output.terms(hidden))


class RequireHeadTest(parameterized.TestCase):
  def test_a_head_and_none(self):
    model, x = networks.TEACHER, networks.batch()['x']
    params = networks.params(model)
    end, weights = stored_output.require_head(model.apply, params, x)
    self.assertEqual(end.width, networks.C)
    self.assertIn((12, networks.C), [leaf.shape for leaf in weights])

    def normalized(params, x):
      logits, activations = model.apply(params, x)
      return jax.nn.log_softmax(logits), activations

    shapes = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    with self.assertRaisesRegex(
      errors.UserError, 'teacher has none: .* Use cache.output=logits'
    ):
      stored_output.require_head(normalized, params, shapes)


if __name__ == '__main__':
  absltest.main()
