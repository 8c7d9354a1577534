"""A train step of which each device has its own examples."""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import optax
import pytest

from cxjax.methods import masks
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import train_step
from cxjax.models import decoder
from cxjax.parallel import mesh as mesh_lib
import drawn

Stage, Term = stage_lib.Stage, stage_lib.Term
CLASSES, WIDTH, ROWS = 40, 8, 5
MODEL = decoder.Decoder(
  vocab_size=CLASSES,
  num_classes=CLASSES,
  max_length=6,
  width=WIDTH,
  heads=2,
  depth=2,
  mlp_width=12,
)
BATCH = {'x': {'tokens': np.arange(24, dtype=np.int32).reshape(4, 6)}}
STAGE = Stage(
  's', 1, (Term(), Term('block0', 'block0', loss='mse', weight=0.5))
)
OUTPUT = Stage('s', 1, (Term(),))
HIDDEN = Stage('s', 1, (Term('block0', 'block0', loss='mse'),))
TARGETS = {
  'logits': drawn.normal(4, 6, CLASSES, seed=1),
  'block0': drawn.normal(4, 6, WIDTH, seed=2),
}
TX = optax.sgd(1.0)


@functools.cache
def params():
  return jax.jit(MODEL.init)(jax.random.key(0), BATCH['x'])


def stepped(sizes, stage, trainable='', apart=False, seeds=0, **options):
  """The state and the loss after a step, and the program of the step."""
  mask = masks.trainable_mask(
    MODEL.apply, params(), BATCH['x'], stage, trainable
  )
  state = train_step.init_stage(
    jax.random.key(1), params(), stage=stage, shapes={}, tx=TX, mask=mask
  )
  apply = MODEL.apply
  if apart:
    apply = output_split.split(apply, ROWS, params(), BATCH['x'])

  def step(state, batch):
    batch = mesh_lib.constrain_batch(batch, axis=0)
    return train_step.update(
      state,
      batch,
      {term.label: TARGETS[term.target] for term in stage.terms},
      apply=apply,
      stage=stage,
      tx=TX,
      mask=mask,
      **options,
    )

  if seeds:
    state = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * leaf]), state)
    step = jax.vmap(step, (0, None))
  with jax.set_mesh(mesh_lib.make(sizes, batch_size=4)):
    program = jax.jit(step).lower(state, BATCH).compile()
    return jax.device_get(program(state, BATCH)), program.as_text()


def exchanged(text):
  """Number of arrays that the devices of a program exchange."""
  calls = re.findall(r' all-reduce(?:-start)?\((.*?)\), ', text)
  return sum(len(operands.split(',')) for operands in calls)


@pytest.mark.devices(2)
@pytest.mark.slow
class StepTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('whole', {'stage': STAGE}),
    ('in_pieces', {'stage': STAGE, 'apart': True}),
    ('frozen', {'stage': STAGE, 'trainable': 'block0'}),
    ('head_alone', {'stage': OUTPUT, 'trainable': 'logits', 'apart': True}),
    ('hidden', {'stage': HIDDEN}),
    ('two_seeds', {'stage': STAGE, 'seeds': 2, 'apart': True}),
    ('microbatches', {'stage': STAGE, 'microbatches': 2}),
  )
  def test_is_that_of_one_device(self, options):
    one, _ = stepped({'data': 1}, **options)
    found, program = stepped({'data': 2}, by_example=True, **options)
    chex.assert_trees_all_close(found, one, rtol=1e-5, atol=1e-6)
    # The loss, its terms, the small parameters, and those of the head.
    self.assertLess(exchanged(program), 8)

  def test_without_it_each_array_is_exchanged(self):
    _, program = stepped({'data': 2}, STAGE)
    self.assertGreater(exchanged(program), 12)


if __name__ == '__main__':
  absltest.main()
