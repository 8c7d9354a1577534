"""Targets of many batches are those of each of them."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import pytest

from cxjax.methods import output_split
from cxjax.methods import stored_output
from cxjax.methods import targets as targets_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import batch_targets
from tests.methods import networks
from tests.training.many_steps import LABELS
from tests.training.many_steps import SEEDS
from tests.training.many_steps import B
from tests.training.many_steps import D
from tests.training.many_steps import Stage
from tests.training.many_steps import Term
from tests.training.many_steps import pick

pytestmark = pytest.mark.slow

# Several terms on sequences: masks, weights, centered means of one batch each.
SEQUENCES = Stage(
  'sequences',
  5,
  (
    Term(target='labels'),
    Term(top_k=2),
    Term('low', 'high', projection='gaussian', centered=True),
    Term(
      'high', 'low', tokens='predicted', centered=True, norm='layer', scale=2.0
    ),
    Term('low', 'low', pool='mean', centered=True, name='mean'),
  ),
)


# Outputs in all forms, beside a hidden term.
OUTPUTS = Stage(
  'outputs',
  5,
  (
    Term('low', 'high', projection='gaussian'),
    Term(),
    Term(target='labels'),
    Term(top_k=2),
    Term(loss='mse', centered=True, scale=2.0),
    Term('low', 'logits', tokens='predicted', norm='layer', regressor=True),
    Term('low', 'logits', pool='mean', regressor=True, name='mean'),
  ),
)


def _batches(streams):
  """Batches of two steps, `[streams, 2, B, ...]`."""
  every = [
    [networks.sequence_batch(10 * s + k) for k in range(2)]
    for s in range(streams)
  ]
  join = lambda *leaves: jnp.stack(leaves)
  return jax.tree.map(join, *[jax.tree.map(join, *one) for one in every])


class ManyTargetsTest(parameterized.TestCase):
  """The targets of K batches are those of each of them."""

  @parameterized.parameters((SEEDS, 2, 1), (1, 2, 4))
  def test_are_those_of_each_batch(self, streams, microbatches, devices):
    every = [
      [networks.sequence_batch(10 * s + k) for k in range(2)]
      for s in range(streams)
    ]
    join = lambda *leaves: jnp.stack(leaves)
    batches = jax.tree.map(join, *[jax.tree.map(join, *one) for one in every])
    batches['x']['dropout'] = jax.random.split(
      jax.random.key(0), (streams, 2, networks.B)
    )
    teacher = networks.sequence_params(5, 0)
    matrices = {'low': jax.random.normal(jax.random.key(1), (SEEDS, 5, 3))}

    def apply(params, x):
      self.assertNotIn('dropout', x)
      return networks.sequence_apply(params, x)

    def fun(batches):
      return batch_targets.many_targets(
        apply,
        teacher,
        matrices,
        batches,
        SEQUENCES,
        microbatches,
      )

    with jax.set_mesh(mesh_lib.make({'data': devices}, networks.B)):
      found = jax.device_get(jax.jit(fun)(batches))
    self.assertCountEqual(found, SEQUENCES.named_terms)
    one = jax.jit(
      lambda matrices, batch: targets_lib.make_targets(
        networks.sequence_apply, teacher, matrices, batch, SEQUENCES
      )
    )
    for seed in range(SEEDS):
      for k in range(2):
        stream = seed % streams
        want = one(pick(matrices, seed), every[stream][k])
        for name, value in want.items():
          # A projection belongs to a seed, other targets to a stream.
          lead = seed if name == 'low' else stream
          got = jax.tree.map(lambda leaf, i=lead, j=k: leaf[i, j], found[name])
          chex.assert_trees_all_close(got, value, rtol=1e-5, atol=1e-5)

  def test_labels_alone_need_no_teacher(self):
    batches = {'x': jnp.zeros((1, 2, B, D)), 'y': jnp.zeros((1, 2, B), int)}
    found = batch_targets.many_targets(None, None, None, batches, LABELS)
    self.assertIs(found['labels'], batches['y'])


class CompletedTest(parameterized.TestCase):
  """Stored hidden states and the head give the targets of the teacher."""

  @parameterized.parameters((SEEDS, 1, 1), (1, 2, 4))
  def test_are_those_of_the_teacher(self, streams, microbatches, devices):
    batches = _batches(streams)
    teacher, apply = networks.sequence_params(5, 0), networks.sequence_apply
    matrices = {'low': jax.random.normal(jax.random.key(1), (SEEDS, 5, 3))}
    stored_stage = stored_output.stored_stage(OUTPUTS, 'hidden')
    end, weights = output_split.ending(
      apply, teacher, jax.tree.map(lambda leaf: leaf[0, 0], batches['x'])
    )

    def live(batches):
      return batch_targets.many_targets(
        apply, teacher, matrices, batches, OUTPUTS, microbatches
      )

    def stored(batches):
      with_features = output_split.with_features(apply)
      found = batch_targets.many_targets(
        with_features, teacher, matrices, batches, stored_stage
      )
      found = {name: found[name] for name in stored_stage.teacher_terms}
      self.assertEqual(found['output'].shape[-1], 5)
      self.assertEqual(found.keys(), {'low', 'output'})
      return batch_targets.completed(
        end, weights, found, batches, OUTPUTS, microbatches
      )

    with jax.set_mesh(mesh_lib.make({'data': devices}, networks.B)):
      want, got = (jax.jit(fun)(batches) for fun in (live, stored))
    del want['labels']
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)

  def test_a_stage_without_an_output_needs_no_head(self):
    stored = {'low': jnp.zeros((1, 2, B, D))}
    stage = Stage('hidden', 5, OUTPUTS.terms[:1])
    found = batch_targets.completed(None, None, stored, {}, stage)
    self.assertEqual(found, stored)
