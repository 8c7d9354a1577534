"""Tests of losses in pieces where examples or the vocabulary are sharded."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

import cxjax
from cxjax.methods import losses as loss_lib
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.parallel import mesh as mesh_lib

IDS = np.random.default_rng(0).integers(0, 64, (3, 8, 8))


def decoder(width, seed):
  module = cxjax.Decoder(
    vocab_size=64,
    num_classes=64,
    max_length=8,
    width=width,
    heads=2,
    depth=1,
    mlp_width=16,
    init_std=0.3,
  )
  return cxjax.from_fn(
    module.apply,
    module.init(jax.random.key(seed), IDS[0]),
    partition_rules=module.abilities.partition_rules,
  )


def losses(mesh, whole, loss='kl'):
  """Losses of a run, and if any output was computed in pieces."""
  with (
    mock.patch.object(output_pieces, 'WHOLE_ON_CPU', whole),
    mock.patch.object(output_pieces, 'PIECE_ON_CPU', 2**10),
    mock.patch.object(output_pieces, 'FEWEST_ON_CPU', 4),
    mock.patch.object(
      output_pieces, 'summed_loss', wraps=output_pieces.summed_loss
    ) as summed,
  ):
    plan = cxjax.plan(
      decoder(16, 0),
      decoder(8, 1),
      {'tokens': IDS[0]},
      num_steps=3,
      layers=(),
      loss=loss,
    )
    batches = [{'tokens': ids} for ids in IDS]
    found = cxjax.distill(plan, batches, mesh=mesh, log_every=1)
  return [record['loss'] for record in found.history], summed.called


class MeshTest(parameterized.TestCase):
  @parameterized.parameters('kl', 'jensen_shannon')
  @pytest.mark.slow
  def test_losses_are_those_of_whole_outputs(self, loss):
    expected, apart = losses({'data': 1}, 2**40, loss)
    self.assertFalse(apart)
    found, apart = losses({'data': 2, 'model': 2}, 2**10, loss)
    self.assertTrue(apart)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  @pytest.mark.devices(2)
  @pytest.mark.slow
  def test_devices_exchange_sums_once(self):
    model, teacher = decoder(8, 1), decoder(16, 0)
    ids = IDS[0, :4]
    ours, theirs = (
      output_split.split(each.apply, 4, each.params, {'tokens': ids})
      for each in (model, teacher)
    )

    def loss(params, ids):
      x = mesh_lib.constrain_batch({'tokens': ids}, axis=0)
      return output_pieces.summed_loss(
        ours(params, x)[0], theirs(teacher.params, x)[0], loss_lib.kl, None
      )

    def compiled():
      grad = jax.jit(jax.value_and_grad(lambda *args: loss(*args)))
      return grad.lower(model.params, ids).compile()

    def exchanges(program):
      """True if one is in a computation that the program's own calls."""
      inner, _, _ = program.as_text().partition('\nENTRY ')
      return ' all-reduce(' in inner

    expected = compiled()(model.params, ids)
    with jax.set_mesh(mesh_lib.make({'data': 2}, batch_size=4)):
      program = compiled()
      found = program(model.params, ids)
      with mock.patch.object(
        output_pieces.shard_sums, 'over_shards', lambda f, *a, axis: f(*a)
      ):
        self.assertTrue(exchanges(compiled()))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
    self.assertFalse(exchanges(program))


if __name__ == '__main__':
  absltest.main()
