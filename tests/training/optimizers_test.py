"""Tests of the optimizers and their schedules."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax import errors
from cxjax.training import optimizers

PARAMS = np.array([1.0, -2.0, 0.5], np.float32)
GRADS = np.array([[0.1, -3.0, 0.0], [0.2, 1.0, -1.0]], np.float32)


def config_of(**fields):
  config = optimizers.default()
  config.update(fields)
  return config


def updates(config, grads=GRADS):
  """What the optimizer adds to `PARAMS` for each gradient in turn."""
  tx = optimizers.make(config)

  @jax.jit
  def run(grads):
    step = lambda state, g: tx.update(g, state, PARAMS)[::-1]
    return jax.lax.scan(step, tx.init(PARAMS), grads)[1]

  return run(grads)


def rates(config, num_steps, length, offset=0):
  """The learning rate at each of `num_steps`."""
  tx = optimizers.make(config, length, offset)
  one = jnp.ones(())
  step = lambda state, _: tx.update(one, state, one)[::-1]
  return -jax.lax.scan(step, tx.init(one), None, num_steps)[1]


def adam(grads, b1, b2):
  """The direction of Adam, bias corrected (Kingma, Ba, 2014)."""
  m = v = np.zeros_like(grads[0])
  steps = []
  for t, g in enumerate(grads, start=1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    steps.append((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8))
  return np.array(steps)


class OptimizerTest(parameterized.TestCase):
  def test_sgd(self):
    # The other fields belong to other optimizers.
    config = config_of(name='sgd', learning_rate=0.5, weight_decay=0.1)
    np.testing.assert_allclose(updates(config), -0.5 * GRADS, rtol=1e-6)

  def test_sgd_with_momentum(self):
    config = config_of(name='sgd', learning_rate=0.5, momentum=0.9)
    expected = [GRADS[0], GRADS[1] + 0.9 * GRADS[0]]
    np.testing.assert_allclose(
      updates(config), -0.5 * np.array(expected), rtol=1e-6
    )

  def test_first_step_of_adam_is_the_sign_of_the_gradient(self):
    config = config_of(name='adam', learning_rate=0.5)
    np.testing.assert_allclose(
      updates(config)[0], -0.5 * np.sign(GRADS[0]), rtol=1e-5
    )

  def test_adam(self):
    config = config_of(
      name='adam', learning_rate=0.5, b1=0.7, b2=0.8, weight_decay=0.1
    )
    expected = -0.5 * adam(GRADS, 0.7, 0.8)
    np.testing.assert_allclose(updates(config), expected, rtol=1e-4)

  def test_adamw_decays_the_parameters(self):
    config = config_of(
      name='adamw', learning_rate=0.5, b1=0.7, b2=0.8, weight_decay=0.1
    )
    expected = -0.5 * (adam(GRADS, 0.7, 0.8) + 0.1 * PARAMS)
    np.testing.assert_allclose(updates(config), expected, rtol=1e-4)

  def test_default_is_adam(self):
    expected = -1e-3 * adam(GRADS, 0.9, 0.999)
    np.testing.assert_allclose(
      updates(optimizers.default()), expected, rtol=1e-4
    )


class ScheduleTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('constant', 'constant', lambda t: np.ones_like(t)),
    ('cosine', 'cosine', lambda t: 0.5 * (1 + np.cos(np.pi * t))),
    ('linear', 'linear', lambda t: 1 - t),
  )
  def test_follows_the_curve(self, name, curve):
    config = config_of(name='sgd', learning_rate=0.5, schedule=name)
    t = np.arange(9) / 8  # Both ends.
    np.testing.assert_allclose(
      rates(config, 9, length=8), 0.5 * curve(t), atol=1e-6
    )

  @parameterized.named_parameters(
    ('constant', 'constant', lambda t: np.ones_like(t)),
    ('cosine', 'cosine', lambda t: 0.5 * (1 + np.cos(np.pi * t))),
    ('linear', 'linear', lambda t: 1 - t),
  )
  def test_warms_up_from_zero_and_then_follows_the_curve(self, name, curve):
    config = config_of(
      name='sgd', learning_rate=0.5, schedule=name, warmup=0.25
    )
    rise, rest = np.arange(4) / 4, np.arange(13) / 12
    expected = 0.5 * np.concatenate([rise, curve(rest)])
    np.testing.assert_allclose(
      rates(config, 17, length=16), expected, atol=1e-6
    )

  @parameterized.product(
    schedule=list(optimizers.SCHEDULES), warmup=[0.0, 0.25], length=[3, 4, 8]
  )
  def test_records_have_the_rate_that_is_taken(self, schedule, warmup, length):
    config = config_of(
      name='sgd', learning_rate=0.5, schedule=schedule, warmup=warmup
    )
    told = [optimizers.Scheduled(config).rate(i, length) for i in range(10)]
    np.testing.assert_allclose(
      told, rates(config, 10, length), rtol=1e-5, atol=1e-7
    )

  @parameterized.product(schedule=list(optimizers.SCHEDULES), length=[1, 3])
  def test_a_warmup_of_less_than_a_step_is_none(self, schedule, length):
    """It would take the only step at the rate 0."""
    config = config_of(name='sgd', schedule=schedule, warmup=0.25)
    without = config_of(name='sgd', schedule=schedule)
    found = rates(config, length, length)
    np.testing.assert_allclose(found, rates(without, length, length), rtol=1e-6)
    self.assertAlmostEqual(float(found[0]), config.learning_rate)
    self.assertEqual(rates(config, 1, 4)[0], 0)  # One of a step is one.

  @parameterized.parameters('adam', 'adamw', 'sgd')
  def test_every_optimizer_is_scheduled(self, name):
    config = config_of(name=name, learning_rate=0.5, schedule='linear')
    # Adam's direction for constant gradients is 1.
    np.testing.assert_allclose(
      rates(config, 4, length=4), [0.5, 0.375, 0.25, 0.125], rtol=1e-4
    )

  def test_offset_enters_later(self):
    config = config_of(name='sgd', schedule='cosine', warmup=0.25)
    np.testing.assert_allclose(
      rates(config, 5, length=8, offset=3),
      rates(config, 8, length=8)[3:],
      rtol=1e-5,
    )

  def test_other_lengths_compile_nothing(self):
    config = config_of(name='sgd', schedule='cosine', warmup=0.25)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(length, offset):
      return rates(config, 4, length, offset)

    for length, offset in ((8, 0), (16, 5), (2, 0)):
      np.testing.assert_allclose(
        run(length, offset), rates(config, 4, length, offset), rtol=1e-5
      )


class ErrorTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('name', dict(name='adams'), "'adams'.*'adam'.*sgd, adam, adamw"),
    ('schedule', dict(schedule='step'), "'step'.*constant, cosine, linear"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      optimizers.make(config_of(**fields))


class UsersTest(parameterized.TestCase):
  @parameterized.parameters(
    (optax.adam, 'call it'),
    (optax.GradientTransformation, 'call it'),
    (optax.cosine_decay_schedule(1.0, 5), 'call it'),
    ('adam', "optimizer='adam' must be one of optax"),
    ([], r'optimizer=\[\] must be one of optax, .* or a dict'),
    ({'rate': 1.0}, "field of optimizer 'rate'.*warmup"),
    ({'learning_rate': 1.0}, "field of optimizer 'learning_rate'"),
    ({'name': 'lion'}, "'lion'.*sgd, adam, adamw"),
    ({'schedule': 1}, 'schedule'),
    ({'warmup': 1}, r"optimizer\['warmup'\]=1 must be"),
    ({'b1': 'much'}, r"optimizer\['b1'\]='much' must be"),
  )
  def test_what_is_no_optimizer(self, tx, message):
    with self.assertRaisesRegex(errors.UserError, message):
      optimizers.check(tx, 1e-3)

  def test_a_learning_rate_beside_an_optimizer_is_not_ignored(self):
    with self.assertRaisesRegex(errors.UserError, 'learning_rate=0.5 belongs'):
      optimizers.check(optax.adam(0.1), 0.5)
    optimizers.check(optax.MultiSteps(optax.adam(0.1), 2), 1e-3)
    optimizers.check(None, 0.5)

  def test_fields_of_the_default_optimizer(self):
    optimizers.check({'name': 'adamw', 'warmup': 0.25}, 0.5)
    found = optimizers.named({'name': 'sgd', 'momentum': 0})
    self.assertEqual((found.name, found.schedule), ('sgd', 'cosine'))

  @parameterized.product(
    name=tuple(optimizers.OPTIMIZERS), field=tuple(optimizers.READERS)
  )
  def test_a_field_trains_or_is_refused(self, name, field):
    """A field that changes no update is refused, and no other one."""
    plain, given = {'name': name}, {field: 0.5, 'name': name}
    changed = optimizers.default()
    changed.update(given)
    grads = np.stack([*GRADS, GRADS[0]])
    same = updates(config_of(**plain), grads) == updates(changed, grads)
    if not same.all():
      optimizers.named(given)
      return
    readers = ' or '.join(optimizers.READERS[field])
    message = f"^optimizer..{field}..=0.5 is a setting of {readers}, .*'{name}'"
    with self.assertRaisesRegex(errors.UserError, message):
      optimizers.named(given)
    with self.assertRaisesRegex(errors.UserError, message):
      optimizers.check(given, 1e-3)

  @parameterized.parameters(*optimizers.OPTIMIZERS)
  def test_the_defaults_of_all_fields_are_of_every_optimizer(self, name):
    fields = {f: optimizers.default()[f] for f in optimizers.READERS}
    self.assertEqual(optimizers.named({'name': name, **fields}).name, name)

  @parameterized.parameters(
    dict(name='adamw', weight_decay=0.5, b2=0.9, warmup=0.25),
    dict(name='sgd', momentum=0.5, schedule='linear'),
  )
  def test_students_with_rates_of_their_own(self, **fields):
    """The updates are those of an optimizer with that rate."""
    both = optimizers.of_distill(fields, (0.5, 0.01))

    def run(tx, rate=None):
      state, params, found = tx.init(PARAMS), PARAMS, []
      for grads in GRADS:
        if rate is not None:
          state = state._replace(rate=jnp.float32(rate))
        step, state = tx.update(grads, state, params)
        params = params + step
        found.append(step)
      return found

    for rate in both.rates:
      alone = optimizers.of_distill(fields, rate)
      chex.assert_trees_all_close(
        run(both(4, 1), rate), run(alone(4, 1)), rtol=1e-5, atol=1e-7
      )
