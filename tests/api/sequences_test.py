"""The train step on sequences: what counts, and what may not matter."""

import dataclasses
import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax.methods import stage as stage_lib
from cxjax.training import multi_step
from cxjax.training import evaluation
from cxjax.methods import losses
from cxjax.methods import stage_plan
from cxjax.methods import projections
from cxjax.methods import train_step
from cxjax.tasks import masked_grammar
from cxjax.models import transformer

TASK = masked_grammar.make(grammar='cfg3b', start=13, mask_rate=0.3)
B, SEEDS = 4, 2


def model(width):
  return transformer.Transformer(
    vocab_size=TASK.vocab_size,
    max_length=TASK.length,
    num_classes=TASK.num_classes,
    width=width,
    heads=2,
    depth=2,
    causal=False,
    init_std=0.2,
  )


TEACHER, STUDENT = model(12), model(8)
PAIRS = (('block0', 'block0'),)
HIDDEN, OUTPUT = stage_lib.extracted(PAIRS, (5, 5))
READ, _ = stage_lib.extracted(PAIRS, (5, 5), positions='read')
FORMED, _ = stage_lib.extracted(
  PAIRS, (5, 5), norm='layer', centered=True, scale=0.5, regressor=True, width=9
)
LABELS = stage_lib.supervised(5)[0]
STAGES = (('hidden', HIDDEN), ('output', OUTPUT))


def draw(key, t, rows=None):
  del rows
  return TASK.draw(key, t, B)


@functools.cache
def batch():
  return jax.jit(draw)(jax.random.key(3), 0)


@functools.cache
def params(net, seed):
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(seed), jnp.arange(SEEDS)
  )
  return jax.jit(jax.vmap(lambda key: net.init(key, batch()['x'])))(keys)


def first(tree):
  return jax.tree.map(lambda leaf: leaf[0], tree)


@functools.cache
def planned(stage):
  return stage_plan.plan_stage(
    stage,
    batch(),
    STUDENT.apply,
    first(params(STUDENT, 1)),
    TEACHER.apply,
    first(params(TEACHER, 0)),
  )


def matrix_of(stage, key):
  shape = planned(stage).projection
  return shape and projections.random_projection(key, stage.law, shape)


@functools.cache
def begin(stage):
  keys = jax.random.split(jax.random.key(2), SEEDS)
  enter = functools.partial(
    train_step.init_stage,
    stage=stage,
    shape=planned(stage).readout,
    tx=optax.sgd(0.1),
    mask=planned(stage).mask,
  )
  matrices = None
  if planned(stage).projection:
    matrices = jnp.stack([matrix_of(stage, key) for key in keys])
  return jax.vmap(enter)(keys, params(STUDENT, 1)), matrices, keys


def update(stage, state, data, matrix, microbatches=1):
  @jax.jit
  def both(state, data):
    want = train_step.make_targets(
      TEACHER.apply, first(params(TEACHER, 0)), matrix, data, stage
    )
    return train_step.train_step(
      state,
      data,
      want,
      apply=STUDENT.apply,
      stage=stage,
      tx=optax.sgd(0.1),
      mask=planned(stage).mask,
      microbatches=microbatches,
    )

  return both(state, data)


@functools.cache
def program(stage, lookahead=1, microbatches=1):
  fun = functools.partial(
    multi_step.train_many_steps,
    draw=draw,
    student=STUDENT.apply,
    teacher=TEACHER.apply,
    stage=stage,
    tx=optax.sgd(0.1),
    mask=planned(stage).mask,
    lookahead=lookahead,
    microbatches=microbatches,
  )
  return jax.jit(fun)


def advance(stage, keys=None, **kwargs):
  states, matrices, own = begin(stage)
  keys = own if keys is None else keys
  states, out = program(stage, **kwargs)(
    states, 0, 4, first(params(TEACHER, 0)), matrices, keys
  )
  return jax.device_get((states, out['loss']))


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b
  )


class LossTest(parameterized.TestCase):
  """The loss of a step is the one that the stage describes."""

  def loss(self, stage):
    states, matrices, _ = begin(stage)
    matrix = None if matrices is None else matrices[0]
    _, loss = update(stage, first(states), batch(), matrix)
    return loss, matrix, first(states)

  def activations(self, net, seed):
    logits, found = jax.jit(net.apply)(first(params(net, seed)), batch()['x'])
    return jax.device_get({**found, 'logits': logits})

  def test_labels_are_cross_entropy_at_the_masked_positions(self):
    logits = self.activations(STUDENT, 1)['logits']
    each = losses.cross_entropy(logits, batch()['y'])
    weights = np.array(batch()['weights'], bool)
    self.assertLess(weights.mean(), 1)  # Else nothing is tested.
    assert_close(self.loss(LABELS)[0], np.array(each)[weights].mean())

  def test_output_is_kl_at_the_masked_positions(self):
    ours = self.activations(STUDENT, 1)['logits']
    theirs = self.activations(TEACHER, 0)['logits']
    weights = np.array(batch()['weights'], bool)
    each = np.array(losses.kl(ours, theirs))
    assert_close(self.loss(OUTPUT)[0], each[weights].mean())

  def test_hidden_is_squared_error_at_the_real_positions(self):
    loss, matrix, _ = self.loss(HIDDEN)
    want = self.activations(TEACHER, 0)['block0'] @ matrix
    error = np.square(self.activations(STUDENT, 1)['block0'] - want).sum(-1)
    real = np.array(batch()['x']['mask'])
    self.assertLess(real.mean(), 1)
    assert_close(loss, np.array(error)[real].mean())

  def test_true_labels_are_mixed_in(self):
    mixed = dataclasses.replace(OUTPUT, alpha=0.25)
    alone, _, _ = self.loss(OUTPUT)
    truth, _, _ = self.loss(LABELS)
    assert_close(self.loss(mixed)[0], 0.75 * alone + 0.25 * truth)

  def test_few_logits_of_the_teacher_are_its_largest(self):
    few = dataclasses.replace(OUTPUT, top_k=3, loss=losses.top_k_kl)
    data = batch()
    want = jax.jit(functools.partial(train_step.make_targets, TEACHER.apply, stage=few))(
      first(params(TEACHER, 0)), matrix=None, batch=data
    )
    logits = self.activations(TEACHER, 0)['logits']
    assert_close(want['values'], -np.sort(-logits)[..., :3])
    np.testing.assert_array_equal(want['classes'][..., 0], logits.argmax(-1))

  def test_positions_read_are_those_of_the_loss(self):
    loss, matrix, _ = self.loss(READ)
    want = self.activations(TEACHER, 0)['block0'] @ matrix
    error = np.square(self.activations(STUDENT, 1)['block0'] - want).sum(-1)
    rows = np.arange(B)[:, None]
    read = np.array(error)[rows, batch()['x']['target_positions']]
    weights = np.array(batch()['weights'], bool)
    assert_close(loss, read[weights].mean())

  def test_norm_centre_scale_and_readout(self):
    loss, matrix, state = self.loss(FORMED)
    h = self.activations(TEACHER, 0)['block0'].astype(np.float64)
    real = np.array(batch()['x']['mask'])
    h -= h.mean(-1, keepdims=True)
    h /= np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    h -= h[real].mean(0)  # Of the real positions, feature by feature.
    want = 0.5 * h @ np.array(matrix)
    got = self.activations(STUDENT, 1)['block0'] @ state.readout['kernel']
    self.assertEqual(got.shape[-1], 9)
    assert_close(loss, np.square(got - want).sum(-1)[real].mean())


class AdvanceTest(parameterized.TestCase):
  @parameterized.named_parameters(*STAGES)
  def test_parts_of_a_batch_are_the_batch(self, stage):
    states, matrices, _ = begin(stage)
    matrix = None if matrices is None else matrices[0]
    whole = update(stage, first(states), batch(), matrix)
    parts = update(stage, first(states), batch(), matrix, microbatches=2)
    assert_close(whole, parts)

  @parameterized.named_parameters(*STAGES)
  def test_neither_lookahead_nor_parts_change_anything(self, stage):
    assert_close(advance(stage), advance(stage, lookahead=3, microbatches=2))

  def test_sharing_batches_is_giving_all_the_same(self):
    stream = jax.random.key(5)
    same = jnp.stack([stream] * SEEDS)
    shared = advance(HIDDEN, keys=stream[None])
    assert_close(advance(HIDDEN, keys=same), shared)

  def test_a_hidden_stage_leaves_what_is_above_alone(self):
    (states, _), before = advance(HIDDEN), params(STUDENT, 1)['params']
    after = states.params['params']
    for name in ('block1', 'transform', 'logits', 'logits_bias'):
      jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    for name in ('tokens', 'position_embedding', 'block0'):
      changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), before[name], after[name]
      )
      self.assertTrue(any(jax.tree.leaves(changed)), name)


class EvaluateTest(parameterized.TestCase):
  def test_agreement_is_with_the_teacher(self):
    weights = np.array(batch()['weights'], bool)
    pair = first(params(STUDENT, 1)), first(params(TEACHER, 0))
    ours, theirs = (
      np.array(jax.jit(net.apply)(p, batch()['x'])[0])
      for net, p in zip((STUDENT, TEACHER), pair, strict=True)
    )
    found = jax.jit(
      functools.partial(
        evaluation.agreement,
        apply=STUDENT.apply,
        teacher=TEACHER.apply,
        parts=2,
      )
    )(*pair, batch())
    same = ours.argmax(-1) == theirs.argmax(-1)
    assert_close(found['agreement'], same[weights].mean())
    kl = np.array(losses.kl(ours, theirs))[weights].mean()
    assert_close(found['teacher_kl'], kl)

  def test_counts_what_has_weight_and_goes_by_parts(self):
    weights = np.array(batch()['weights'], bool)
    state = first(params(STUDENT, 1))
    logits, _ = jax.jit(STUDENT.apply)(state, batch()['x'])
    hits = (np.array(logits).argmax(-1) == batch()['y'])[weights].mean()
    for parts in (1, 2):
      found = jax.jit(
        functools.partial(evaluation.evaluate, apply=STUDENT.apply, parts=parts)
      )(state, batch())
      assert_close(found['accuracy'], hits)
    loss = losses.cross_entropy(logits, batch()['y'])
    assert_close(found['loss'], np.array(loss)[weights].mean())
