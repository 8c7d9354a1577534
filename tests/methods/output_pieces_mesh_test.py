"""Tests of losses in pieces where the vocabulary is sharded."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

import cxjax
from cxjax.methods import output_pieces

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


if __name__ == '__main__':
  absltest.main()
