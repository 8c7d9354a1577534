"""Masks of parameters: by dependency, by path, by what can be trained."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.methods import masks
from cxjax.methods import stage as stage_lib
from cxjax.parallel import partition


class DependencyMaskTest(parameterized.TestCase):
  def mask(self, names):
    def apply(p, x):
      low = jax.jit(lambda p, x: x @ p['a'])(p, x)
      high, _ = jax.lax.scan(lambda c, w: (c @ w, None), low, p['stack'])
      side = x @ p['side']
      return high @ p['b'], {'low': low, 'high': high, 'side': side}

    shapes = {'a': (2, 2), 'b': (2, 2), 'side': (2, 2), 'stack': (3, 2, 2)}
    shape = lambda size: jax.ShapeDtypeStruct(size, jnp.float32)
    params = {name: shape(size) for name, size in shapes.items()}
    x = shape((1, 2))
    found = masks.dependency_mask(apply, params, x, names)
    return {name for name, needed in found.items() if needed}

  @parameterized.parameters(
    ('low', {'a'}),
    ('high', {'a', 'stack'}),
    ('logits', {'a', 'stack', 'b'}),
    (('low', 'side'), {'a', 'side'}),
  )
  def test_sees_through_jit_and_scan(self, names, needed):
    self.assertEqual(self.mask(names), needed)

  def test_unknown_activation(self):
    with self.assertRaisesRegex(errors.UserError, "'hihg'.*mean 'high'"):
      self.mask('hihg')


PATHS = {
  'params': {
    'block0': {
      'query': {'kernel': 0, 'bias': 0},
      'scale': 0,
    },
    'block1': {'query': {'kernel': 0, 'bias': 0}, 'scale': 0},
    'block10': {'scale': 0},
    'head': {'kernel': 0, 'bias': 0},
  }
}


def marked(mask):
  return {
    partition.leaf_name(path).removeprefix('params/')
    for path, leaf in jax.tree.leaves_with_path(mask)
    if leaf
  }


class PathMaskTest(parameterized.TestCase):
  @parameterized.parameters(
    # Globs of whole components.
    ('block0', {'block0/query/kernel', 'block0/query/bias', 'block0/scale'}),
    ('block1/scale', {'block1/scale'}),
    ('block?/query/bias', {'block0/query/bias', 'block1/query/bias'}),
    ('*/bias', {'block0/query/bias', 'block1/query/bias', 'head/bias'}),
    ('block[01]/scale', {'block0/scale', 'block1/scale'}),
    ('params/head/*', {'head/kernel', 'head/bias'}),
    ('block1*/scale', {'block1/scale', 'block10/scale'}),
    # Regular expressions.
    (r'block\d/scale', {'block0/scale', 'block1/scale'}),
    (
      'scale|head',
      {
        'block0/scale',
        'block1/scale',
        'block10/scale',
        'head/kernel',
        'head/bias',
      },
    ),
    ('^params/head/k', {'head/kernel'}),
    ('query.*bias$', {'block0/query/bias', 'block1/query/bias'}),
  )
  def test_marks(self, pattern, expected):
    self.assertEqual(marked(masks.path_mask(PATHS, pattern)), expected)

  @parameterized.parameters('lock0', 'bloc', 'Block0', 'query/block0', 'hea')
  def test_nothing_matches(self, pattern):
    message = f"trainable='{pattern}' matches no .*params/block0/query/bias, .*"
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      masks.path_mask(PATHS, pattern)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEndsWith(str(caught.exception), ', ....')  # More than 8.

  def test_is_no_regular_expression(self):
    with self.assertRaisesRegex(errors.UserError, r"'\(head' is no regular"):
      masks.path_mask(PATHS, '(head')

  @parameterized.parameters(3, (('head', 'block0'),), None)
  def test_is_no_text(self, pattern):
    with self.assertRaisesRegex(errors.UserError, 'trainable=.* a pattern'):
      masks.path_mask(PATHS, pattern)


class TrainableMaskTest(parameterized.TestCase):
  """What can be trained at all; the rest is in train_step_touched_test."""

  X = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  STAGE = stage_lib.Stage('s', 1, stage_lib.Term())

  def mask(self, leaves, training=None):
    params = {'w': jnp.ones((3, 2)), **leaves}
    apply = lambda p, x: (x @ p['w'], {})
    return masks.trainable_mask(
      apply, params, self.X, self.STAGE, training=training
    )

  def test_integers_booleans_and_keys_are_not_trained(self):
    leaves = {
      'order': np.arange(3),
      'flag': np.array(True),
      'key': jax.random.key(0),
      'bytes': jnp.zeros(4, jnp.uint8),
    }
    found = self.mask(leaves)
    self.assertEqual(found, {'w': True, **dict.fromkeys(leaves, False)})

  def test_what_the_student_changes_is_not_trained(self):
    def training(params, x, key):
      scaled = x * params['scale'][None]
      return scaled @ params['w'], {}, {'scale': params['scale'] + 1}

    found = self.mask({'scale': jnp.ones(3)}, training)
    self.assertEqual(found, {'w': True, 'scale': False})
    self.assertIs(found['scale'], masks.NO_PARAMETER)

  def test_what_the_training_mode_does_not_read_is_not_trained(self):
    """A part of the output that is there at inference alone."""
    apply = lambda p, x: ((x + p['shift'][None]) @ p['w'], {})
    training = lambda p, x, key: (x @ p['w'], {}, {})
    params = {'w': jnp.ones((3, 2)), 'shift': jnp.ones(3)}
    found = masks.trainable_mask(
      apply, params, self.X, self.STAGE, training=training
    )
    self.assertEqual(found, {'w': True, 'shift': False})

  def test_pruned_trees_come_back(self):
    """Without what is no parameter, and with the gaps of a stage."""
    state = masks.NO_PARAMETER
    mask = {'a': {'w': True, 'mean': state}, 'b': False, 'stats': {'c': state}}
    tree = {'a': {'w': 1, 'mean': None}, 'b': None, 'stats': {'c': None}}
    found = masks.pruned(tree, mask)
    self.assertEqual(found, {'a': {'w': 1}, 'b': None})
    self.assertEqual(masks.restored(found, mask), tree)
    self.assertTrue(masks.has_state(mask))
    mask = {'a': (False, True), 'b': {}, 'c': None}
    tree = {'a': (None, 1), 'b': {}, 'c': None}
    self.assertEqual(masks.pruned(tree, mask), tree)
    self.assertFalse(masks.has_state(mask))

  def test_a_term_of_weight_0_trains_nothing(self):
    apply = lambda p, x: (x @ p['w'], {'side': x @ p['side']})
    params = {'w': jnp.ones((3, 2)), 'side': jnp.ones((3, 2))}
    terms = stage_lib.Term(), stage_lib.Term('side', 'side', weight=0.0)
    stage = stage_lib.Stage('s', 1, terms)
    found = masks.trainable_mask(apply, params, self.X, stage)
    self.assertEqual(found, {'w': True, 'side': False})

  @parameterized.parameters(
    (np.arange(6).reshape(3, 2), 'none of its leaves is a floating'),
    (np.ones((3, 2), np.complex64), "'w' is complex64: complex parameters"),
  )
  def test_nothing_can_be_trained(self, w, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.mask({'w': w})
