"""Tests of the cause of a loss that is not finite."""

import pathlib
import types

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.training import failures
from cxjax.training import run_spec
from tests.methods import networks
from tests.training import runs

Stage, Term = runs.Stage, runs.Term


class ExplainTest(parameterized.TestCase):
  def explain(self, message, bad, stage=None, rows=None, **fields):
    stage = stage or Stage('labels', 40, runs.LABELS)
    spec = runs.spec((stage,), **fields)
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      failures.explain(spec, stage, folder, np.array(bad), rows)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ([7, 5], 'seed 1 is not finite at step 5'),
    ([5, 7], 'seed 0 is not finite at step 5'),
    ([5, 5], 'seed 0 is not finite at step 5'),
  )
  def test_the_first_seed_and_step(self, bad, message):
    self.explain(f"{message}, in stage 'labels'.*none was saved yet", bad)

  def weights(self, of):
    """Batches whose weights are `of(key, t)`."""

    def draw(key, t, rows=None):
      return {**runs.draw(key, t), 'weights': of(key, t)}

    return draw

  def test_a_batch_in_which_nothing_counts(self):
    draw = self.weights(lambda key, t: jnp.full(runs.SIZE, t != 5, float))
    message = 'batch of seed 1 at step 5 has no position that counts'
    self.explain(message, [9, 5], draw=draw)
    self.explain('seed 1 is not finite at step 4', [9, 4], draw=draw)

  def test_of_any_term(self):
    """Hidden activations count by the mask, labels by the weights."""

    def draw(key, t, rows=None):
      batch = networks.sequence_batch()
      return {**batch, 'weights': 0 * batch['weights']}

    student = types.SimpleNamespace(
      apply=networks.sequence_apply,
      init=lambda key, x: networks.sequence_params(3, 1),
    )
    fields = dict(draw=draw, student=student)
    both = (Term('low', 'low'), runs.LABELS)
    stage = Stage('s', 1, both)
    self.explain('no position that counts', [5, 5], stage, **fields)
    alone = Stage('s', 1, both[:1])
    self.explain('seed 0 is not finite', [5, 5], alone, **fields)

  def test_a_shared_stream_is_that_of_every_seed(self):
    draw = self.weights(lambda key, t: jnp.full(runs.SIZE, t != 5, float))
    self.explain(
      'seed 1 at step 5 has no position',
      [9, 5],
      draw=draw,
      keys=runs.keys(streams=1),
    )

  def test_rows_of_the_host_are_those_of_the_step(self):
    rows = {
      'x': np.ones((4, 2, runs.SIZE, runs.BITS), np.float32),
      'weights': np.ones((4, 2, runs.SIZE), np.float32),
    }
    rows['weights'][5 % 4, 1] = 0
    host = run_spec.HostData(
      rows=jax.eval_shape(lambda: jax.tree.map(lambda x: x[0, 0], rows))
    )
    fields = dict(draw=lambda key, t, rows: rows, host=host, rows=rows)
    self.explain('seed 1 at step 5 has no position', [9, 5], **fields)
    self.explain('seed 0 is not finite at step 5', [5, 9], **fields)
    self.explain('seed 1 is not finite at step 6', [9, 6], **fields)

  def test_rows_that_all_seeds_share(self):
    rows = {'weights': np.ones((4, 1, runs.SIZE), np.float32)}
    rows['weights'][5 % 4] = 0
    host = run_spec.HostData(
      rows=jax.eval_shape(lambda: jax.tree.map(lambda x: x[0, 0], rows))
    )
    draw = lambda key, t, rows: {**runs.draw(key, t), **rows}
    self.explain(
      'seed 1 at step 5 has no position',
      [9, 5],
      draw=draw,
      host=host,
      rows=rows,
      keys=runs.keys(streams=1),
    )
