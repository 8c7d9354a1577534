"""The axis of the features of hidden activations, as the user says it."""

import dataclasses

from absl.testing import parameterized
import equinox as eqx
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
import drawn

pytestmark = pytest.mark.slow

B, C, T = 4, 3, 5
X = np.random.default_rng(0).normal(size=(B, C, T)).astype(np.float32)
KEY = jax.random.key(0)
NAMES = ('blocks/0', 'blocks/1')


def model(width, moved=False, others=False, key=KEY):
  """Two layers over the channels of `[B, C, T]`, which come first."""
  keys = jax.random.split(key, 3)
  draw = jax.random.normal
  params = {
    'a': draw(keys[0], (C, width)),
    'b': 0.5 * draw(keys[1], (width, width)),
    'head': draw(keys[2], (width, 7)),
  }

  def apply(params, x):
    a = jnp.tanh(jnp.einsum('bct,cd->bdt', x, params['a']))
    b = jnp.tanh(jnp.einsum('bct,cd->bdt', a, params['b']))
    found = dict(zip(NAMES, (a, b), strict=True))
    if moved:
      found = {n: jnp.moveaxis(h, 1, -1) for n, h in found.items()}
    if others:
      found['pooled'] = b.mean(2)
    return b.mean(2) @ params['head'], found

  return cxjax.from_fn(apply, params)


class Block(nn.Module):
  """A block that returns a dict, with the channels first."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(self.width)(jnp.moveaxis(x, 1, -1)))
    return {'h': jnp.moveaxis(x, -1, 1), 'mean': x.mean(-1)}


class OfDicts(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = Block(self.width, name=f'blocks_{i}')(x)['h']
    return nn.Dense(7)(x.mean(2))


def of_dicts(width):
  net = OfDicts(width)
  return cxjax.from_linen(net, drawn.parameters(net.init, X))


class Images(eqx.Module):
  convs: list

  def __init__(self, width):
    make = lambda n: eqx.nn.Conv1d(n, width, 3, padding=1, key=KEY)
    self.convs = [make(C), make(width)]

  def __call__(self, x):
    for each in self.convs:
      x = jax.nn.relu(each(x))
    return x.mean(1)[:4]


def plan(teacher, student, feature_axis, **kwargs):
  kwargs = kwargs if 'stages' in kwargs else {'num_steps': 8, **kwargs}
  return cxjax.plan(teacher, student, X, feature_axis=feature_axis, **kwargs)


def widths(plan):
  """Widths of teacher and student, by hidden term."""
  return {
    name: (term.teacher_width, term.student_width)
    for stage in plan.stage_plans
    for name, term in stage.terms.items()
    if name != 'output'
  }


class ChosenTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, (T, T), (T, T)),
    (-1, (T, T), (T, T)),
    (1, (8, 6), (8, 6)),
    (np.int64(-2), (8, 6), (8, 6)),
    ((1, 1), (8, 6), (8, 6)),
    ([1, None], (8, T), (8, T)),
    ((None, 1), (T, 6), (T, 6)),
    ({'blocks/*': 1}, (8, 6), (8, 6)),
    ({'blocks/1': 1}, (T, T), (8, 6)),
    # The first that fits.
    ({'blocks/1': 1, 'blocks/*': 2}, (T, T), (8, 6)),
    (({'blocks/0': 1}, {'blocks/1': 1}), (8, T), (T, 6)),
  )
  def test_widths(self, feature_axis, *wanted):
    found = widths(plan(model(8), model(6), feature_axis, pool='mean'))
    self.assertEqual(found, dict(zip(NAMES, wanted, strict=True)))

  def test_the_other_side_has_it_last(self):
    found = widths(plan(model(8), model(6, moved=True), (1, -1)))
    self.assertEqual(found, dict.fromkeys(NAMES, (8, 6)))

  def test_several_terms_of_stages(self):
    terms = [cxjax.Term(n, n, projection='gaussian') for n in NAMES]
    stages = cxjax.Stage('both', 8, (*terms, cxjax.Term()))
    found = widths(plan(model(8), model(6), 1, stages=stages))
    self.assertEqual(found, dict.fromkeys(NAMES, (8, 6)))

  def test_blocks_that_return_dicts(self):
    both = of_dicts(8), of_dicts(6)
    found = widths(plan(*both, {'blocks_*/h': 1}, layers='blocks_*'))
    names = ('blocks_0/h', 'blocks_1/h')
    self.assertEqual(found, dict.fromkeys(names, (8, 6)))

  def test_it_goes_before_what_convolutions_say(self):
    both = cxjax.from_equinox(Images(8)), cxjax.from_equinox(Images(6))
    for axis, wanted in (None, (8, 6)), (-1, (T, T)), ((None, 2), (8, T)):
      found = widths(plan(*both, axis, pool='mean'))
      self.assertEqual(found['convs/0'], wanted)

  def test_activations_that_are_not_compared_may_have_other_axes(self):
    both = model(8, others=True), model(6, others=True)
    found = widths(plan(*both, 2, layers='blocks/*', pool='mean'))
    self.assertEqual(found, dict.fromkeys(NAMES, (T, T)))

  def test_compare(self):
    found = cxjax.compare(
      model(8),
      model(6),
      [X],
      held_out=X,
      num_steps=16,
      methods=('fitnets',),
      rates=(1e-3,),
      seeds=1,
      costs='counted',
      feature_axis=1,
      report=lambda line: None,
    )
    for each in found.contenders:
      self.assertEqual(set(widths(each.plan).values()), {(8, 6)})


class RunTest(parameterized.TestCase):
  def losses(self, *args, **kwargs):
    pairs = [(NAMES[1], NAMES[1])]
    found = plan(*args, num_steps=4, layers=pairs)
    _, history = cxjax.distill(found, [X], log_every=1, **kwargs)
    return [record['loss'] for record in history]

  def test_it_is_the_run_of_models_that_move_it_themselves(self):
    other = jax.random.key(1)
    said = model(8), model(6, key=other), 1
    itself = model(8, moved=True), model(6, moved=True, key=other), None
    self.assertEqual(self.losses(*said), self.losses(*itself))

  def test_in_training_mode(self):
    plain = model(6, key=jax.random.key(1))
    training = lambda params, x, key: (*plain.apply(params, x), {})
    student = dataclasses.replace(plain, training=training)
    found, wanted = (
      self.losses(model(8), each, 1) for each in (student, plain)
    )
    self.assertEqual(found, wanted)

  def test_a_workdir_of_another_axis_is_refused(self):
    # All shapes are the same whichever axis it is.
    both = model(T), model(T, key=jax.random.key(1))
    folder = self.create_tempdir().full_path
    first = self.losses(*both, 1, workdir=folder)
    self.assertEqual(self.losses(*both, 1, workdir=folder), first)
    for other in (None, (1, 2), (2, 1)):
      with self.assertRaisesRegex(errors.UserError, 'teacher|student'):
        self.losses(*both, other, workdir=folder)

  def test_stored_targets(self):
    both = model(T), model(T, key=jax.random.key(1))
    cache = {'folder': self.create_tempdir().full_path}
    wanted = self.losses(*both, 1)
    for _ in range(2):  # Made, then read.
      found = self.losses(*both, 1, cache=cache)
      np.testing.assert_allclose(found, wanted, rtol=1e-6)
    with self.assertRaisesRegex(errors.UserError, 'teacher'):
      self.losses(*both, (2, 1), cache=cache)


class RefusedTest(parameterized.TestCase):
  def test_other_axes_of_positions_name_the_argument(self):
    with self.assertRaisesRegex(errors.UserError, 'feature_axis'):
      plan(model(8), model(6), None)

  @parameterized.parameters(
    (0, r'feature_axis=0 .*batch'),
    (3, r"feature_axis=3.*'blocks/0' of the teacher.*1 to 2"),
    (-3, r"feature_axis=-3.*'blocks/0' of the teacher.*batch"),
    ((1, 3), r"feature_axis=3.*'blocks/0' of the student"),
    ({'blocks/1': 9}, r"feature_axis=9.*'blocks/1' of the teacher"),
    ({'blocks/1': 0}, r'feature_axis=0 .*batch'),
    ('1', r"feature_axis='1' must be"),
    (True, r'feature_axis=True must be'),
    (1.0, r'feature_axis=1.0 must be'),
    ((1,), r'feature_axis=\(1,\) must be'),
    ((1, 1, 1), r'feature_axis=\(1, 1, 1\) must be'),
    ((1, '1'), r"feature_axis='1' must be"),
    ({'blocks/1': (1, 2)}, r'feature_axis=\(1, 2\) must be'),
    ({1: 1}, r'feature_axis=\{1: 1\} must be'),
    ({'block/1': 1}, r"'block/1'.*Did you mean 'blocks/1'"),
    (({'block/*': 1}, None), r"teacher.*'block/\*'.*'blocks/\*'"),
    ({'logits': 1}, r"'logits' is an output.*output="),
  )
  def test_in_one_line(self, feature_axis, message):
    with self.assertRaisesRegex(errors.UserError, message) as raised:
      plan(model(8), model(6), feature_axis)
    self.assertNotIn('\n', str(raised.exception))
