"""Adapter of Keras models on JAX."""

import os
import pickle
from unittest import mock
import warnings

from absl.testing import parameterized
import jax
import numpy as np
import pytest

os.environ.setdefault('KERAS_BACKEND', 'jax')
import keras  # noqa: E402

import bad_values  # noqa: E402
from cxjax import errors  # noqa: E402
from cxjax.api import mode_warnings  # noqa: E402
from cxjax.models import adapters  # noqa: E402
from cxjax.models import keras_adapter  # noqa: E402

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
IDS = np.array([[1, 2, 0], [3, 1, 2], [1, 0, 0], [2, 2, 2]])


def network():
  # Names are numbered from the beginning.
  keras.utils.clear_session(free_memory=False)
  x = inputs = keras.Input((5,))
  for _ in range(2):
    x = keras.layers.Dense(8, activation='tanh')(x)
  x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
  return keras.Model(inputs, keras.layers.Dense(3, name='head')(x))


class Inner(keras.layers.Layer):
  def __init__(self, width):
    super().__init__()
    self.supports_masking = True
    self.rnn = keras.layers.SimpleRNN(width)

  def call(self, x, mask=None):
    return self.rnn(x, mask=mask)


class Masked(keras.Model):
  """Zeros are padding, of which the recurrent layer knows by a mask."""

  def __init__(self, width):
    super().__init__()
    self.embed = keras.layers.Embedding(4, width, mask_zero=True)
    self.inner = Inner(width)

  def call(self, ids, scale=1.0):
    return self.inner(self.embed(ids)) * scale


def setUpModule():
  global NET, MODEL
  NET = network()
  MODEL = keras_adapter.from_keras(NET)


class KerasTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_rank_promotion('allow'))

  def test_computes_what_the_model_computes(self):
    output, found = MODEL.apply(MODEL.params, X)
    np.testing.assert_allclose(output, NET(X), rtol=1e-5)
    self.assertContainsSubset(['dense_0', 'dense_1', 'dropout', 'head'], found)
    np.testing.assert_allclose(found['dense_0'], NET.layers[1](X), rtol=1e-5)
    self.assertIs(keras.Layer.__call__.__module__, keras.Layer.__module__)

  def test_wrap_returns_a_new_model(self):
    double = jax.tree.map(lambda leaf: 2 * leaf, MODEL.params)
    new = MODEL.wrap(double)
    self.assertIsNot(new, NET)
    np.testing.assert_allclose(new(X), MODEL.apply(double, X)[0], rtol=1e-5)
    np.testing.assert_allclose(NET(X), MODEL.apply(MODEL.params, X)[0], 1e-5)

  def test_a_pickled_one_reads_its_parameters(self):
    with warnings.catch_warnings():  # Of numpy, for Keras.
      warnings.simplefilter('ignore')
      model = pickle.loads(pickle.dumps(MODEL))
    double = jax.tree.map(lambda leaf: 2 * leaf, MODEL.params)
    np.testing.assert_allclose(
      model.apply(double, X)[0], MODEL.apply(double, X)[0], rtol=1e-5
    )
    np.testing.assert_allclose(
      model.wrap(double)(X), MODEL.apply(double, X)[0], rtol=1e-5
    )

  def test_averages_and_dropout_in_training(self):
    run = jax.jit(MODEL.training)
    one, found, changed = run(MODEL.params, X, jax.random.key(0))
    other, *_ = run(MODEL.params, X, jax.random.key(1))
    self.assertGreater(np.abs(one - other).max(), 1e-3)
    mean = found['dense_1'].mean(0)
    old = MODEL.params['state']['batch_normalization/moving_mean']
    new = changed['state']['batch_normalization/moving_mean']
    np.testing.assert_allclose(new, 0.99 * old + 0.01 * mean, atol=1e-6)
    self.assertLen(changed['state'], 2)  # No seeds.
    adapters.check_training(MODEL, X)
    self.assertEmpty(MODEL.unused_dropout(X))

  def test_at_inference_averages_are_constant(self):
    model = keras_adapter.from_keras([NET, network()], training=False)
    self.assertTrue(model.several)
    self.assertNotIn('state', model.one)
    self.assertLen(model.constant_statistics(X), 2)

  def test_masks_and_nested_models_and_calls(self):
    model = Masked(6)
    model(IDS)
    adapted = keras_adapter.from_keras(model)
    output, found = adapted.apply(adapted.params, IDS)
    np.testing.assert_allclose(output, model(IDS), rtol=1e-5)
    self.assertContainsSubset(['embedding', 'inner', 'inner/simple_rnn'], found)
    x = {'ids': IDS, 'scale': np.full((4, 1), 2.0)}
    twice, _ = adapted.apply(adapted.params, x)
    np.testing.assert_allclose(twice, 2 * output, rtol=1e-5)
    call = lambda model, x, training: model(x['ids'], training=training)
    called = keras_adapter.from_keras(model, call=call)
    np.testing.assert_allclose(
      called.apply(called.params, {'ids': IDS})[0], output, rtol=1e-5
    )
    with self.assertRaisesRegex(errors.UserError, 'cannot be copied.*get_conf'):
      keras_adapter.from_keras([model] * 2)

  def test_constraints_and_regularizers_are_named(self):
    keras.utils.clear_session(free_memory=False)
    inner = keras.Sequential([keras.Input((5,))])
    inner.add(keras.layers.Dense(3, kernel_constraint='non_neg'))
    inner.add(keras.layers.Dense(3, bias_regularizer='l2'))
    inner.add(keras.layers.ActivityRegularization(l1=0.1))
    x = keras.Input((5,))
    model = keras_adapter.from_keras(keras.Model(x, inner(x)))
    self.assertEqual(
      model.ignored,
      (
        'sequential/dense/kernel (NonNeg)',
        'sequential/dense_1/bias (L2)',
        'activity_regularization (L1L2 of its output)',
      ),
    )
    with self.assertLogs(level='WARNING') as logged:
      mode_warnings.warn(MODEL, model, X)
    self.assertRegex(
      logged.output[0], 'constraints .*: seq.*/dense/kernel .NonNeg'
    )
    with self.assertNoLogs():  # A teacher is not trained.
      mode_warnings.warn(model, MODEL, X)

  def test_what_is_no_built_model_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, 'a dict is no Keras model'):
      keras_adapter.from_keras({})
    with self.assertRaisesRegex(errors.UserError, 'is not built. Call it once'):
      keras_adapter.from_keras(keras.Sequential([keras.layers.Dense(3)]))

  def test_another_backend_is_an_error(self):
    with (
      mock.patch.dict(os.environ, {'KERAS_BACKEND': 'torch'}),
      self.assertRaisesRegex(errors.UserError, 'is torch. Set KERAS_BACKEND='),
    ):
      keras_adapter.from_keras(NET)
    with (
      mock.patch.object(keras.config, 'backend', lambda: 'tensorflow'),
      self.assertRaisesRegex(errors.UserError, 'Keras is tensorflow. Set'),
    ):
      keras_adapter.from_keras(NET)

  def test_without_keras_it_says_what_to_install(self):
    with (
      mock.patch.dict('sys.modules', {'keras': None}),
      self.assertRaisesRegex(errors.UserError, 'pip install keras'),
    ):
      keras_adapter.from_keras(NET)


class BadArgumentsTest(parameterized.TestCase):
  def test_every_argument(self):
    self.enterContext(jax.numpy_rank_promotion('allow'))
    case = bad_values.Case(
      keras_adapter.from_keras,
      dict(model=NET),
      lambda model: adapters.outputs(model, X),
      some=2,
    )
    bad_values.try_case(self, case)
