"""Several outputs with a loss each, one over their tree, auxiliary losses."""

import contextlib
import functools

from absl import logging
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import losses
from small_networks import D
from small_networks import X
from small_networks import parameters

CLASSES, BOXES = 3, 4


def detector(params, x, boxes=None):
  """Logits, boxes, a score, and the number of a class, of no gradient."""
  low = jnp.tanh(x @ params['low'])
  high = jnp.tanh(low @ params['high'])
  output = {
    'logits': high @ params['out'],
    'heads': {'boxes': low[:, :boxes], 'score': high[:, 0]},
    'kind': jnp.argmax(high, axis=-1),
  }
  balance = jnp.mean(low**2)
  return output, {'low': low, 'high': high, 'balance': balance}


def pair(apply=detector, low=5):
  teacher = cxjax.from_fn(apply, parameters(0))
  return teacher, cxjax.from_fn(apply, parameters(1, low=low))


def first_loss(plan):
  """The record of the first step, before any update."""
  _, history = cxjax.distill(plan, [X], log_every=1)
  return history[0]


ALL = {
  'logits': 'kl',
  'heads': {'boxes': ('mse', 0.5), 'score': 'mse'},
  'kind': None,
}


class OutputsTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_the_sum_of_the_losses(self):
    teacher, student = pair()
    plan = cxjax.plan(
      teacher,
      student,
      X,
      num_steps=2,
      layers=(),
      loss=ALL,
      auxiliary={'balance': 0.1},
    )
    student, history = cxjax.distill(plan, [X], log_every=1)
    found = history[0]
    want, _ = detector(parameters(0), X)
    boxes = detector(student, X)[0]['heads']['boxes'] - want['heads']['boxes']
    last = history[-1]
    np.testing.assert_allclose(
      last['eval/loss/heads/boxes'], (boxes**2).mean(), rtol=1e-5
    )
    one = losses.kl(detector(student, X)[0]['logits'], want['logits'])
    np.testing.assert_allclose(last['eval/loss/logits'], one.mean(), rtol=1e-5)
    # All but the auxiliary loss, which is of training alone.
    paths = {'logits': 1, 'heads/boxes': 0.5, 'heads/score': 1}
    total = sum(w * last[f'eval/loss/{path}'][0] for path, w in paths.items())
    np.testing.assert_allclose(last['eval/loss'], [total], rtol=1e-5)
    got, values = detector(parameters(1), X)
    each = {
      'logits': losses.kl(got['logits'], want['logits']).mean(),
      'heads/boxes': (
        (got['heads']['boxes'] - want['heads']['boxes']) ** 2
      ).mean(),
      'heads/score': (
        (got['heads']['score'] - want['heads']['score']) ** 2
      ).mean(),
      'balance': values['balance'],
    }
    for name, value in each.items():
      np.testing.assert_allclose(found[f'loss/{name}'], value, rtol=1e-5)
    total = np.dot([1, 0.5, 1, 0.1], list(each.values()))
    np.testing.assert_allclose(found['loss'], total, rtol=1e-5)

  @pytest.mark.slow
  def test_the_sum_decides(self):
    """Also of outputs that stages name, of which none is the first."""
    stage = cxjax.Stage(
      'both',
      4,
      terms=[
        cxjax.Term(f'output:{path}', f'output:{path}', 'mse', weight=weight)
        for path, weight in (('logits', 2.0), ('heads/boxes', 0.5))
      ],
    )
    plan = cxjax.plan(*pair(), X, stages=stage)
    found = cxjax.distill(
      plan, [X], log_every=1, held_out=X, learning_rate=0.3, keep_best='loss'
    )
    evaluated = [one for one in found.history if 'eval/loss' in one]
    self.assertLen(evaluated, 4)
    for record in evaluated:
      (boxes,), (logits,) = (
        record[f'eval/loss/{path}'] for path in ('heads/boxes', 'logits')
      )
      np.testing.assert_allclose(
        record['eval/loss'], [2 * logits + boxes / 2], rtol=1e-5
      )
    best = min(evaluated, key=lambda record: record['eval/loss'])
    self.assertEqual(found.best_step, best['step'])

  @pytest.mark.slow
  def test_hidden_stages_are_as_they_were(self):
    """The heads are no layers, and compute nothing there."""
    plan = cxjax.plan(*pair(), X, num_steps=9, loss=ALL)
    plain = lambda p, x: (detector(p, x)[0]['logits'], detector(p, x)[1])
    bare = cxjax.plan(*pair(plain), X, num_steps=9)
    self.assertEqual(plan.stages[:-1], bare.stages[:-1])
    for a, b in zip(
      plan.stage_plans_with_costs[:-1],
      bare.stage_plans_with_costs[:-1],
      strict=True,
    ):
      self.assertEqual(a.student_flops, b.student_flops)

  @pytest.mark.slow
  def test_one_loss_over_the_tree(self):
    def distance(student, teacher):
      differ = jax.tree.map(
        lambda a, b: jnp.sum((a - b) ** 2, axis=-1), student, teacher
      )
      return differ['logits'] + differ['heads']

    def apply(params, x):
      output, found = detector(params, x)
      return {
        'logits': output['logits'],
        'heads': output['heads']['boxes'],
      }, found

    plan = cxjax.plan(
      *pair(apply), X, num_steps=2, layers=(), loss={'*': distance}
    )
    want = distance(apply(parameters(1), X)[0], apply(parameters(0), X)[0])
    np.testing.assert_allclose(first_loss(plan)['loss'], want.mean(), rtol=1e-5)

  @pytest.mark.slow
  def test_a_tuple_of_outputs(self):
    apply = lambda p, x: (
      (x @ p['low'], x @ p['low']),
      {'low': jnp.tanh(x @ p['low'])},
    )
    plan = cxjax.plan(
      *pair(apply), X, num_steps=2, layers=(), loss=('mse', None)
    )
    self.assertLen(plan.stages[-1].terms, 1)
    over = lambda a, b: jnp.abs(a[0] - b[1]).sum(-1)
    plan = cxjax.plan(*pair(apply), X, num_steps=2, layers=(), loss=over)
    want = jnp.abs(X @ parameters(1)['low'] - X @ parameters(0)['low'])
    np.testing.assert_allclose(
      first_loss(plan)['loss'], want.sum(-1).mean(), rtol=1e-5
    )

  @pytest.mark.slow
  def test_stages_that_name_outputs(self):
    boxes = cxjax.Term('output:heads/boxes', 'output:heads/boxes', 'mse', 0.5)
    balance = cxjax.Term('auxiliary:bal*', 'none', weight=0.1)
    stage = cxjax.Stage('joint', 2, (cxjax.Term(), boxes, balance))
    found = first_loss(cxjax.plan(*pair(), X, stages=stage))
    output, values = detector(parameters(1), X)
    want = detector(parameters(0), X)[0]['heads']['boxes']
    want = 0.5 * ((output['heads']['boxes'] - want) ** 2).mean()
    want += found['loss/output'] + 0.1 * values['balance']
    np.testing.assert_allclose(found['loss'], want, rtol=1e-5)
    for term, message in (
      (
        cxjax.Term('output:box', 'output:box'),
        "'box' is no output of the teac",
      ),
      (cxjax.Term('auxiliary:b', 'none'), "'b' is no scalar that"),
    ):
      stage = cxjax.Stage('joint', 2, (cxjax.Term(), term))
      with self.assertRaisesRegex(errors.UserError, message):
        cxjax.plan(*pair(), X, stages=stage)

  @pytest.mark.slow
  def test_none_leaves_out_all_outputs_of_a_subtree(self):
    apply = lambda p, x: (
      {**detector(p, x)[0], 'aux': {'n': {'a': x, 'b': None}, 'm': [x]}},
      {},
    )
    models = pair(apply)
    terms = lambda loss: [
      (term.student, term.weight)
      for term in cxjax.plan(
        *models, X, num_steps=2, layers=(), loss={**loss, 'kind': None}
      )
      .stages[-1]
      .terms
    ]
    whole = terms({'logits': 'kl', 'heads': None, 'aux': None})
    self.assertEqual([name for name, _ in whole], ['logits'])
    loss = {'logits': 'kl', 'heads': {'boxes': ('mse', 0.5), 'score': None}}
    some = [('logits', 1.0), ('output:heads/boxes', 0.5)]
    for aux in (
      {'n': None, 'm': None},
      {'n': {'a': None, 'b': None}, 'm': None},
    ):
      self.assertEqual(terms({**loss, 'aux': aux}), some)
    loss = {'logits': 'kl', 'heads': None, 'heads/boxes': ('mse', 0.5)}
    self.assertEqual(terms({**loss, 'aux': None}), some)
    with self.assertRaisesRegex(
      errors.UserError, "names 'au', which is no out"
    ):
      terms({**loss, 'aux': None, 'au': None})

  @parameterized.parameters(
    ({'logits': 'kl'}, "none for the output 'heads/boxes', 'heads/score', 'k"),
    ({**ALL, 'box': 'mse'}, "loss names 'box', which is no output"),
    ({**ALL, 'kind': 'mse'}, "'kind' is int32.8.: a loss needs a floating"),
    ({**ALL, 'logits': 3}, "loss: 3 for the output 'logits' must be the name"),
    ({**ALL, 'logits': 'kll'}, "Unknown loss 'kll'"),
    ({'*': 'mse'}, 'must be a function of the two trees'),
    ({'*': lambda a, b: 0}, "output 'kind' is int32"),
    (
      dict.fromkeys(('logits', 'heads/boxes', 'heads/score', 'kind')),
      'all out',
    ),
    ('kl', 'must return .output, activations., an array'),
  )
  def test_refuses(self, loss, message):
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.plan(*pair(), X, num_steps=9, loss=loss)

  def test_models_that_do_not_run(self):
    broken = cxjax.from_fn(lambda p, x: (x @ p['lo'], {}), parameters(0))
    for models in ((broken, pair()[1]), (pair()[0], broken)):
      with self.assertRaisesRegex(errors.UserError, "does not run .*'lo'"):
        cxjax.plan(*models, X, num_steps=9, loss=ALL)

  @pytest.mark.slow
  def test_an_output_that_is_left_out_is_warned_of(self):
    def apply(params, x):
      low = jnp.tanh(x @ params['low'])
      boxes = low @ params['high'] @ params['out']
      output = {'logits': low @ params['low'].T, 'boxes': boxes, 'low': low}
      return {**output, 'kind': boxes.argmax(-1)}, {'low': low}

    def warned(output=lambda out: out, **options):
      fun = lambda p, x: (output(apply(p, x)[0]), apply(p, x)[1])
      model = cxjax.from_fn(fun, parameters(0))
      with self.assertLogs(level='INFO') as logged:
        logging.info('A line that is always there.')
        with contextlib.suppress(errors.UserError):  # It has no one output.
          cxjax.plan(model, model, X, **options)
      return [line for line in logged.output if 'left out' in line]

    for options in (
      {'num_steps': 2, 'layers': ()},
      {'num_steps': 2, 'layers': (), 'loss': lambda a, b: (a - b).mean(-1)},
      {'stages': cxjax.one_shot(2)},
    ):
      (line,) = warned(**options)
      self.assertIn("not trained: boxes. Give each a loss, as loss={'log", line)
    tree = {'logits': 'kl', 'boxes': None, 'low': None, 'kind': None}
    self.assertEqual(warned(num_steps=2, layers=(), loss=tree), [])
    of = lambda out: out['logits']
    self.assertEqual(warned(of, num_steps=2, layers=()), [])
    term = cxjax.Term('output:boxes', 'output:boxes', 'mse')
    stage = cxjax.Stage('both', 2, (cxjax.Term(), term))
    self.assertEqual(warned(stages=stage), [])
    hidden = cxjax.Stage('hidden', 2, (cxjax.Term('low', 'low'),))
    self.assertEqual(warned(stages=hidden), [])

  def test_outputs_of_the_teacher(self):
    _, student = pair()
    apply = lambda p, x: (x @ p['low'], {})
    teacher = cxjax.from_fn(apply, parameters(0))
    with self.assertRaisesRegex(
      errors.UserError, "'heads/boxes' .* none of th"
    ):
      cxjax.plan(teacher, student, X, num_steps=9, loss=ALL)


class Sown(nn.Module):
  """A linen network that sows a loss, in training with noise."""

  @nn.compact
  def __call__(self, x, train=False):
    for i in range(2):
      x = jnp.tanh(nn.Dense(4, name=f'blocks_{i}')(x))
      self.sow('losses', 'size', jnp.mean(x**2))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(CLASSES)(x), jnp.mean(x)


class SownNnx(nnx.Module):
  def __init__(self):
    self.layer = nnx.Linear(D, CLASSES, rngs=nnx.Rngs(0))

  def __call__(self, x):
    self.sow(nnx.Intermediate, 'my_loss', jnp.mean(self.layer.kernel[...] ** 2))
    return self.layer(x)


class AuxiliaryTest(parameterized.TestCase):
  TEACHER = cxjax.from_fn(
    lambda p, x: (x @ p['low'][:, :CLASSES], {}), parameters(0)
  )

  def sown(self, **options):
    variables = jax.jit(Sown().init)(jax.random.key(0), X)
    make = functools.partial(cxjax.from_linen, Sown(), variables, **options)
    return variables, make(output=lambda out: {'logits': out[0], 'aux': out[1]})

  @pytest.mark.slow
  def test_of_linen(self):
    variables, student = self.sown()
    plan = cxjax.plan(
      self.TEACHER,
      student,
      X,
      num_steps=2,
      layers=(),
      loss={'logits': 'kl'},
      auxiliary={'losses/*': 0.1, 'aux': 2.0},
    )
    found = first_loss(plan)
    out, state = Sown().apply(
      {'params': variables['params']}, X, mutable='losses'
    )
    size = sum(state['losses']['size'])
    np.testing.assert_allclose(found['loss/losses'], size, rtol=1e-5)
    np.testing.assert_allclose(found['loss/aux'], out[1], rtol=1e-5)
    total = found['loss/output'] + 0.1 * size + 2 * out[1]
    np.testing.assert_allclose(found['loss'], total, rtol=1e-5)

  @pytest.mark.slow
  def test_in_training_mode_and_in_microbatches(self):
    _, student = self.sown(training={'train': True})
    plan = cxjax.plan(
      self.TEACHER,
      student,
      X,
      num_steps=2,
      layers=(),
      loss={'logits': 'kl'},
      auxiliary={'losses/*': 0.1, 'aux': 2.0},
    )
    _, history = cxjax.distill(plan, [X], log_every=1, microbatches=2)
    self.assertGreater(history[0]['loss/losses'], 0)

  @pytest.mark.slow
  def test_of_nnx(self):
    student = cxjax.from_nnx(SownNnx())
    with self.assertLogs('absl', 'WARNING') as logs:
      cxjax.plan(self.TEACHER, student, X, num_steps=2, layers=())
    self.assertRegex(
      '\n'.join(logs.output), "out: my_loss. .*{'my_loss': 0.01}"
    )
    plan = cxjax.plan(
      self.TEACHER, student, X, num_steps=2, layers=(), auxiliary={'my_*': 3.0}
    )
    want = jnp.mean(SownNnx().layer.kernel[...] ** 2)
    found = first_loss(plan)['loss/my_']
    np.testing.assert_allclose(found, want, rtol=1e-5)

  @parameterized.parameters(
    ({'balanse': 1.0}, "'balanse' is no scalar .*Did you mean 'balance'"),
    ({'each': 1.0}, "'each' is .8., one value for each example"),
    ({'balance': -1.0}, 'weight=-1'),
    ('balance', "auxiliary='balance' must be the weights"),
    ({3: 0.1}, 'must be the weights'),
  )
  def test_refuses(self, auxiliary, message):
    def apply(params, x):
      output, found = detector(params, x)
      return output['logits'], {**found, 'each': found['low'].mean(-1)}

    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.plan(*pair(apply), X, num_steps=9, auxiliary=auxiliary)
