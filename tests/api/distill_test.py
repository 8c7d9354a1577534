"""From two networks and an example to a trained student."""

import functools
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import cxjax
from cxjax.data import user_batches
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.api import distill as distill_lib
from cxjax import errors
from cxjax.data import loader
from cxjax.methods import losses
import faults

B, D, C = 8, 6, 3


class Net(nn.Module):
  widths: tuple[int, ...]
  features: int = C

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = jnp.tanh(nn.Dense(width)(x))
    return nn.Dense(self.features)(x)


class Image(nn.Module):
  strides: int
  features: int = 4

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(self.features, (3, 3), self.strides)(x))
    x = nn.relu(nn.Dense(5)(x.mean((1, 2))))
    return nn.Dense(C)(x)


class Sequence(nn.Module):
  every: int = 1

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(5, name='first')(x)[:, :: self.every]
    x = nn.Dense(5, name='second')(nn.relu(x))
    return nn.Dense(C)(x.mean(1))


def network(module, x, *seeds):
  init = jax.jit(module.init)
  params = [init(jax.random.key(seed), x) for seed in seeds or (0,)]
  return cxjax.from_linen(module, params if seeds else params[0])


def rows(seed=0, number=12, shape=(B, D)):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(number)]


X = rows()[0]
TEACHER = network(Net((16, 16)), X)
STUDENT = network(Net((4,)), X)
# One plan for all, so that one program is compiled.
PLAN = cxjax.plan(TEACHER, STUDENT, X, num_steps=20, share=0.5)


def distill(plan=PLAN, batches=None, **kwargs):
  return cxjax.distill(plan, rows() if batches is None else batches, **kwargs)


class PlanTest(parameterized.TestCase):
  def test_matches_by_depth(self):
    plan = cxjax.plan(
      network(Net((7, 8, 9, 10)), X),
      network(Net((4, 5)), X),
      X,
      num_steps=100,
    )
    pairs = [(stage.target, stage.student) for stage in plan.stages]
    self.assertEqual(
      pairs,
      [('Dense_1', 'Dense_0'), ('Dense_3', 'Dense_1'), ('logits', 'logits')],
    )
    self.assertEqual([stage.steps for stage in plan.stages], [20, 20, 60])
    self.assertEqual(plan.planned[0].projection, (8, 4))
    self.assertRegex(str(plan), r'Dense_1 +\| +8 \| Dense_0 .*gaussian 8 x 4')

  def test_four_layers_at_most_unless_they_are_named(self):
    deep = network(Net((4,) * 6), X)
    plan = cxjax.plan(TEACHER, deep, X, num_steps=100)
    names = [stage.student for stage in plan.stages]
    self.assertEqual(
      names, ['Dense_0', 'Dense_2', 'Dense_3', 'Dense_5', 'logits']
    )
    plan = cxjax.plan(
      TEACHER,
      deep,
      X,
      num_steps=9,
      layers=[('Dense_0', 'Dense_4')],
      steps=(4, 5),
    )
    self.assertEqual([stage.steps for stage in plan.stages], [4, 5])

  def test_without_layers_it_is_one_shot(self):
    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=10, layers=())
    self.assertEqual(plan.stages, cxjax.one_shot(10))
    with self.assertRaisesRegex(errors.UserError, 'law: there is no hidden'):
      cxjax.plan(TEACHER, STUDENT, X, num_steps=10, layers=(), projection='orthogonal')

  @parameterized.parameters(
    (1, 1, None, 'none'), (1, 2, None, 'mean'), (1, 1, 'flatten', 'flatten')
  )
  def test_grids_that_differ_are_pooled(self, theirs, ours, asked, pool):
    x = jnp.ones((2, 4, 4, 1))
    plan = cxjax.plan(
      network(Image(theirs), x),
      network(Image(ours, 2), x),
      x,
      num_steps=10,
      layers=[('Conv_0', 'Conv_0')],
      pool=asked,
    )
    self.assertEqual(plan.stages[0].pool, pool)
    widths = {'none': (4, 2), 'mean': (4, 2), 'flatten': (64, 32)}
    self.assertEqual(plan.planned[0].projection, widths[pool])

  def test_an_image_with_a_vector(self):
    x = jnp.ones((2, 4, 4, 1))
    net = network(Image(1), x)
    plan = cxjax.plan(net, net, x, num_steps=9, layers=[('Conv_0', 'Dense_0')])
    self.assertEqual(plan.planned[0].projection, (4, 5))

  def test_sequences_of_other_lengths(self):
    x = jnp.ones((2, 6, 3))
    plan = functools.partial(
      cxjax.plan,
      network(Sequence(), x),
      network(Sequence(2), x),
      x,
      num_steps=9,
      layers=[('second', 'second')],
    )
    with self.assertRaisesRegex(
      errors.UserError, r"'second', \[2, 3, 5\], .*\[2, 6, 5\].*pool='mean'"
    ):
      plan()
    self.assertEqual(plan(pool='mean').planned[0].projection, (5, 5))

  @parameterized.parameters(
    ({'layers': [('Dense_9', 'Dense_0')]}, "'Dense_9'.*mean 'Dense_"),
    ({'layers': [('Dense_1', 'Dens_0')]}, "'Dens_0'.*mean 'Dense_0'"),
    ({'loss': 'kld'}, "loss 'kld'.*mean 'kl'"),
    ({'share': 1.5}, 'share=1.5'),
    ({'steps': (1, 2)}, 'do not add up'),
    ({'alpha': 0.5}, r'needs the labels: give \(x, labels\)'),
    ({'stages': cxjax.supervised(5)}, 'needs the labels'),
    ({'checkpoint': 5}, "option 'checkpoint'"),
    ({'lawn': 'sparse'}, "option 'lawn'.*mean 'projection'"),
    ({'hidden_loss': 'l1'}, "hidden_loss 'l1'.*l2, cosine"),
    ({'layers': ('Dense_1', 'Dense_0')}, "'Dense_1' is not a pair"),
    ({'layers': [('Dense_1', 'Dense_0', 'x')]}, 'is not a pair'),
    ({'layers': 'Dense_0'}, "layers='Dense_0' must be pairs"),
    ({'loss': lambda got, want: jnp.mean(got)}, r'makes \[\] of \[8, 3\]'),
    ({'loss': lambda got: got}, 'does not take the student'),
    ({'loss': 3}, 'loss=3.*no function'),
    ({'steps': ('a', 'b')}, "steps='a' must be a whole"),
    ({'num_steps': 9.5}, 'whole number'),
    ({'stages': ()}, 'has no stage'),
    ({'stages': cxjax.one_shot(5), 'projection': 'sparse'}, 'law: a curriculum'),
    ({'dtype': 'bf17'}, "dtype='bf17' is none"),
    ({'stages': cxjax.progressive((5, None), (1, 1))}, 'checkpoints out'),
  )
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      cxjax.plan(TEACHER, STUDENT, X, **{'num_steps': 20, **options})
    self.assertNotIn('\n', str(caught.exception))

  def test_refuses_other_classes_and_two_teachers(self):
    with self.assertRaisesRegex(errors.UserError, r'\[8, 3\].*\[8, 5\].*vocab'):
      cxjax.plan(TEACHER, network(Net((4,), 5), X), X, num_steps=9)
    with self.assertRaisesRegex(errors.UserError, 'one teacher'):
      cxjax.plan(network(Net((4,)), X, 0, 1), STUDENT, X, num_steps=9)

  def test_refuses_what_is_no_network_or_does_not_run(self):
    with self.assertRaisesRegex(errors.UserError, 'student is a Net,.*from_li'):
      cxjax.plan(TEACHER, Net((4,)), X, num_steps=9)
    with self.assertRaisesRegex(
      errors.UserError, r'teacher does not run on an x of float32\[8, 5\]: '
    ) as caught:
      cxjax.plan(TEACHER, STUDENT, X[:, :5], num_steps=9)
    self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(errors.UserError, r'has mask beside x'):
      cxjax.plan(TEACHER, STUDENT, {'x': X, 'mask': X}, num_steps=9)

  @parameterized.parameters(
    (np.eye(C, dtype=np.float32)[np.arange(B) % C], r'float32\[8, 3\].*argmax'),
    (np.zeros((B, 1), int), r'\[8, 1\].*\[8\]'),
  )
  def test_refuses_labels_that_are_no_classes(self, y, message):
    plan = functools.partial(cxjax.plan, TEACHER, STUDENT, (X, y), num_steps=9)
    with self.assertRaisesRegex(errors.UserError, message):
      plan(alpha=0.5)
    # Without alpha they are read by the accuracy alone.
    with self.assertRaisesRegex(errors.UserError, message):
      distill(plan(), [(X, y)])

  def test_the_largest_logits_alone(self):
    found = []
    for top in (C, 0):  # All of them, whichever way.
      plan = cxjax.plan(
        TEACHER, STUDENT, X, num_steps=9, layers=(), temperature=2.0, top_k=top
      )
      params, history = distill(plan)
      found.append((params, history[-1]['eval/loss']))
    chex.assert_trees_all_close(*found, rtol=1e-3, atol=1e-5)

  def test_a_loss_of_hidden_layers_by_name(self):
    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=9, hidden_loss='cosine')
    self.assertIs(plan.stages[0].loss, losses.cosine)


class DistillTest(parameterized.TestCase):
  def test_learns_its_teacher(self):
    student = network(Net((16,)), X, 1, 2)
    plan = cxjax.plan(TEACHER, student, X, num_steps=600)
    held_out = np.concatenate(rows(1, 20))
    params, history = cxjax.distill(
      plan,
      rows(2, 300),
      held_out=held_out,
      learning_rate=0.01,
    )
    first, last = history[0], history[-1]
    self.assertEqual([last['step'], last['stage']], [600, 'output'])
    self.assertLess(max(last['eval/loss']), 0.05)
    self.assertGreater(min(last['eval/agreement']), 0.75)
    self.assertLess(max(last['eval/loss']), 0.2 * min(first['eval/loss']))
    # What comes back is what was measured.
    for seed in range(2):
      got = Net((16,)).apply(params[seed], held_out)
      want, _ = TEACHER.apply(TEACHER.params, held_out)
      np.testing.assert_allclose(
        losses.kl(got, want).mean(), last['eval/loss'][seed], rtol=1e-3
      )

  def test_the_student_that_went_in_is_as_it_was(self):
    before = jax.device_get(STUDENT.params)
    params, _ = distill()
    chex.assert_trees_all_equal(jax.device_get(STUDENT.params), before)
    self.assertIn('params', params)
    moved = jnp.abs(
      params['params']['Dense_0']['kernel'] - before['Dense_0']['kernel']
    )
    self.assertGreater(float(moved.max()), 1e-4)

  def test_several_are_each_as_alone(self):
    several = network(Net((4,)), X, 0, 1)
    plan = cxjax.plan(TEACHER, several, X, num_steps=20, share=0.5)
    both, history = distill(plan)
    one, alone = distill()
    chex.assert_trees_all_close(both[0], one, rtol=1e-4, atol=1e-6)
    self.assertLen(history[-1]['eval/loss'], 2)
    np.testing.assert_allclose(
      history[-1]['eval/loss'][0], alone[-1]['eval/loss'][0], rtol=1e-4
    )

  @parameterized.parameters('list', 'iterator', 'grain')
  def test_a_run_that_was_killed_goes_on(self, kind):
    if kind == 'grain':
      import grain  # noqa: PLC0415

      whole_data = grain.MapDataset.source(rows()).repeat().to_iter_dataset()
      make = lambda: iter(whole_data)
    else:
      make = {'list': rows, 'iterator': lambda: iter(rows(number=25))}[kind]
    whole, _ = distill(batches=make())
    folder = pathlib.Path(self.create_tempdir().full_path)
    again = functools.partial(distill, workdir=folder, held_out=X, log_every=2)
    with faults.killed_after(7):
      again(batches=make())
    self.assertEqual(checkpoints_lib.latest(folder), 12)
    params, history = again(batches=make())
    chex.assert_trees_all_equal(params, whole)
    self.assertEqual([row['step'] for row in history], list(range(2, 21, 2)))
    # Finished: nothing more is trained, the same comes back.
    chex.assert_trees_all_equal(again(batches=make())[0], params)
    with self.assertRaisesRegex(errors.UserError, 'another .*student'):
      other = network(Net((4,)), X, 7)
      plan = cxjax.plan(TEACHER, other, X, num_steps=20, share=0.5)
      distill(plan, workdir=folder, log_every=2)

  def test_an_iterator_that_was_looked_at_goes_on(self):
    """Without held-out data the first batch is taken before the run begins."""
    make, dict_of = lambda: iter(rows(number=25)), lambda x: {'x': x}
    stream = loader.Stream(user_batches.Peeked(make()), {'x': X}, dict_of)
    first = [next(stream)['x'] for _ in range(3)]
    state = stream.get_state()
    fourth = next(stream)['x']
    other = loader.Stream(user_batches.Peeked(make()), {'x': X}, dict_of)
    other.set_state(state)
    np.testing.assert_array_equal(next(other)['x'], fourth)
    self.assertFalse(np.array_equal(first[-1], fourth))

  def test_a_workdir_of_another_learning_rate(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    distill(workdir=folder)
    with self.assertRaisesRegex(errors.UserError, 'learning_rate'):
      distill(workdir=folder, learning_rate=0.3)

  def test_a_workdir_of_another_loss_or_precision(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    plan = functools.partial(cxjax.plan, TEACHER, STUDENT, X, num_steps=20)
    by_class = jnp.arange(1.0, C + 1)[None]
    loss = lambda got, want: jnp.sum(by_class * (got - want) ** 2, -1)
    distill(plan(loss=loss), workdir=folder)
    distill(plan(loss=loss), workdir=folder)
    with self.assertRaisesRegex(errors.UserError, r'stages.\d.loss'):
      other = lambda got, want: jnp.mean((got - want) ** 2, -1)
      distill(plan(loss=other), workdir=folder)
    with self.assertRaisesRegex(errors.UserError, r'dtype \(None there, bfl'):
      distill(plan(loss=loss, dtype=jnp.bfloat16), workdir=folder)

  def test_a_loss_that_is_an_object(self):
    class Squared:
      def __call__(self, got, want):
        return jnp.sum((got - want) ** 2, -1)

    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=9, loss=Squared())
    self.assertIn('Squared', distill_lib._describe(plan.stages[-1].loss))

  def test_the_state_of_an_iterator_that_was_looked_at_is_its_own(self):
    import grain  # noqa: PLC0415

    data = grain.MapDataset.source(rows()).repeat().to_iter_dataset()
    stream = loader.Stream(
      user_batches.Peeked(iter(data)), {'x': X}, lambda x: {'x': x}
    )
    np.testing.assert_array_equal(next(stream)['x'], rows()[0])
    self.assertIsNotNone(stream.get_state()['own'])

  @parameterized.parameters(
    ({'log_every': 0}, 'log_every=0'),
    ({'eval_every': 0}, 'eval_every=0'),
    ({'optimizer': 'adam'}, "optimizer='adam' must be one of optax"),
    ({'batches': 3}, 'batches are a int'),
    ({'learning_rate': lambda step: 0.1}, 'learning_rate=.*optimizer=optax'),
    ({'seed': -1}, 'seed=-1'),
    ({'log_every': 2.5}, 'log_every=2.5 must be a whole number'),
    ({'held_out': X[:0]}, 'held_out has parts of 0 examples'),
    ({'held_out': X[:, :4]}, r'held_out has shape \[8, 4\]'),
    ({'batches': [X[:, :4]]}, r'the first batch has shape \[8, 4\]'),
  )
  def test_arguments_that_cannot_be(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      distill(**options)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(7, -100)
  def test_labels_of_no_class(self, label):
    y = np.full(B, label)
    plan = cxjax.plan(TEACHER, STUDENT, (X, y), num_steps=20, alpha=0.5)
    with self.assertRaisesRegex(errors.UserError, f'{label}: the output has 3'):
      distill(plan, [(X, y)], held_out=(X, y * 0))
    with self.assertRaisesRegex(errors.UserError, f'{label}: the output has 3'):
      distill(plan, [(X, y * 0)], held_out=(X, y))

  def test_what_other_libraries_have_for_arrays_and_numbers(self):
    class Tensor:
      def __init__(self, array):
        self.array = array

      def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)

    class Batches:  # Without __iter__.
      def __getitem__(self, i):
        return [Tensor(rows()[i]), Tensor(y)]

    y = np.arange(B, dtype=np.int64) % C
    plan = cxjax.plan(
      TEACHER,
      STUDENT,
      [Tensor(X), Tensor(y)],
      num_steps=np.int64(20),
      steps=np.array([10, 10]),
      layers=zip(['Dense_1'], ['Dense_0'], strict=True),
    )
    rate = 2**-10
    folder = self.create_tempdir().full_path
    got, history = distill(
      plan, Batches(), learning_rate=np.float32(rate), workdir=folder
    )
    self.assertIn('eval/accuracy', history[-1])
    same = cxjax.plan(TEACHER, STUDENT, (X, y), num_steps=20, steps=(10, 10))
    self.assertEqual(same.stages[0].target, 'Dense_1')
    data = [(x, y) for x in rows()]
    want, _ = distill(same, data, learning_rate=rate)
    chex.assert_trees_all_equal(got, want)

  def test_labels_that_no_weight_counts(self):
    weights = np.array([1] * (B - 2) + [0] * 2, np.float32)
    y = np.arange(B) % C
    data = {'x': X, 'y': y, 'weights': weights}
    plan = cxjax.plan(TEACHER, STUDENT, data, num_steps=20, alpha=0.5)
    optimizer = optax.MultiSteps(optax.adam(1e-3), 2)
    want, history = distill(plan, [data], optimizer=optimizer)
    ignored = {**data, 'y': np.where(weights == 0, -100, y)}
    got, same = distill(plan, [ignored], optimizer=optimizer)
    chex.assert_trees_all_equal(got, want)
    self.assertEqual(history[-1], same[-1])
    with self.assertRaisesRegex(
      errors.UserError, r"'weights' of shape \[8, 2\]"
    ):
      bad = {**data, 'weights': np.ones((B, 2))}
      cxjax.plan(TEACHER, STUDENT, bad, num_steps=20, alpha=0.5)

  def test_held_out_needs_no_labels_that_are_not_read(self):
    y = np.zeros((B, 1), np.float32)
    plan = cxjax.plan(TEACHER, STUDENT, (X, y), num_steps=20, loss='mse')
    _, history = distill(plan, [(X, y)], held_out=X)
    self.assertIn('eval/loss', history[-1])
    plan = cxjax.plan(TEACHER, STUDENT, (X, None), num_steps=20)
    self.assertNotIn('y', plan.batch)

  @parameterized.parameters(2, 7)  # 7: the last batches are no whole chunk.
  def test_as_many_batches_as_steps(self, log_every):
    data = rows(number=20)
    params, _ = distill(
      batches=iter(data), log_every=log_every, held_out=X, save_every=log_every
    )
    want, _ = distill(batches=data, held_out=X, log_every=log_every)
    chex.assert_trees_all_equal(params, want)
    with self.assertRaisesRegex(errors.UserError, 'ended after 19'):
      distill(batches=iter(data[:19]), log_every=log_every)

  def test_batches_that_would_be_rounded(self):
    stream = loader.Stream([X], np.zeros(X.shape, int))
    with self.assertRaisesRegex(errors.UserError, 'float32, that of the .*int'):
      next(stream)
    stream = loader.Stream([np.array([300])], np.zeros(1, np.uint8))
    with self.assertRaisesRegex(errors.UserError, 'uint8, .*does not hold'):
      next(stream)

  def test_an_axis_that_is_none(self):
    with self.assertRaisesRegex(errors.UserError, "'tensor'"):
      distill(mesh={'tensor': 2})

  def test_labels(self):
    labels = np.arange(B) % C
    plan = cxjax.plan(TEACHER, STUDENT, (X, labels), num_steps=20, alpha=0.5)
    _, history = distill(plan, [(X, labels)])
    self.assertContainsSubset(
      ('eval/accuracy', 'eval/loss', 'eval/agreement'), history[-1]
    )
    stages = cxjax.supervised(20)
    plan = cxjax.plan(
      TEACHER, STUDENT, {'x': X, 'y': labels}, num_steps=20, stages=stages
    )
    params, history = distill(plan, [{'x': X, 'y': labels}])
    got = Net((4,)).apply(params, X)
    np.testing.assert_allclose(
      losses.cross_entropy(got, labels).mean(),
      history[-1]['eval/loss'][0],
      rtol=1e-5,
    )

  @parameterized.parameters(
    ('cosine', {'eval/cosine', 'eval/loss'}), ('mse', {'eval/loss'})
  )
  def test_outputs_that_are_not_logits(self, loss, names):
    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=20, loss=loss, layers=())
    _, history = distill(plan)
    found = {name for name in history[-1] if name.startswith('eval/')}
    self.assertEqual(found, names)

  def test_a_loss_and_metrics_of_ones_own(self):
    absolute = lambda got, want: jnp.abs(got - want).sum(-1)
    plan = cxjax.plan(
      TEACHER, STUDENT, X, num_steps=20, loss=absolute, layers=()
    )
    largest = lambda got, want: jnp.abs(got - want).max(-1)
    params, history = distill(
      plan, [X], metrics={'largest': largest}, optimizer=optax.sgd(0.01)
    )
    got, want = (
      net.apply(p, X)[0]
      for net, p in ((STUDENT, params['params']), (TEACHER, TEACHER.params))
    )
    np.testing.assert_allclose(
      history[-1]['eval/largest'][0], largest(got, want).mean(), rtol=1e-4
    )

  def test_images_and_nnx(self):
    class Small(nnx.Module):
      def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(2, C, rngs=rngs)

      def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))

    x = rows(shape=(B, 4, 4, 1))
    model = Small(nnx.Rngs(0))
    plan = cxjax.plan(
      network(Image(1), x[0]), cxjax.from_nnx(model), x[0], num_steps=20
    )
    self.assertEqual(plan.stages[0].student, 'conv')
    new, history = distill(plan, x)
    self.assertIsInstance(new, Small)
    self.assertLess(history[-1]['loss'], history[0]['loss'])
    self.assertEqual(new(x[0]).shape, (B, C))

  def test_bfloat16_and_parts_of_a_batch(self):
    plan = cxjax.plan(
      TEACHER, STUDENT, X, num_steps=20, share=0.5, dtype=jnp.bfloat16
    )
    params, _ = distill(plan, microbatches=2)
    whole, _ = distill()
    chex.assert_trees_all_equal_dtypes(params, whole)
    chex.assert_trees_all_close(params, whole, atol=0.02)

  def test_devices(self):
    want, _ = distill(mesh={'data': 1})
    got, _ = distill(mesh={'data': 2, 'fsdp': 2})
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(
    ([X, X[:5]], r'batch 2 has shape \[5, 6\].*\[8, 6\].*Drop a last batch'),
    ([(X, X)], 'batch 1 has x, y, the example of the plan x'),
    ([], 'ended after 0'),
    (iter([]), 'ended after 0'),
  )
  def test_batches_that_cannot_be(self, batches, message):
    with self.assertRaisesRegex(errors.UserError, message):
      distill(batches=batches, held_out=X)

  def test_an_iterator_that_ends(self):
    with self.assertRaisesRegex(errors.UserError, 'ended after 5.*iterated'):
      distill(batches=iter(rows(number=5)))


if __name__ == '__main__':
  absltest.main()
