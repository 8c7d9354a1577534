"""Code of the previous release: old names, arguments and forms still work.

Each use warns and names what to write now, at the line of the user.
"""

import functools
import warnings

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import deprecation
from cxjax import errors
from cxjax.configs import builders
from cxjax.tasks import parity as parity_lib
from experiments import parity_mlp
from legacy_warnings import TestCase
from legacy_warnings import quiet
from small_networks import BIG
from small_networks import SMALL
from small_networks import X


def words(text):
  return tuple(text.split())


# The public names of the previous release.
PUBLIC = words("""
  LAWS MLP Curriculum Network Plan PlannedStage Stage State Tap Taps
  Transformer UserError __version__ activation advance agreement cast cka
  cosine cross_entropy degree_one distill enter evaluate export extracted
  from_fn from_linen from_nnx hard_kl jensen_shannon kl l2 linear_probe
  match_layers mse ngram_distance one_shot plan plan_stage progressive project
  random_projection reverse_kl show split_steps supervised taps target top_k
  top_k_kl train_step trained with_costs
""")
MODULES = words("""
  batches build cache checkpoint command curriculum dispatch distillation
  dry_run errors evaluation experiment feed files hlo huggingface journal
  limits losses machines mesh methods networks optimizers overrides planning
  plans plots probes processes programs projection recipe stablehlo step
  summary table train version
""")
# The modules whose names are the new ones, too.
SAME = ('errors', 'files', 'huggingface', 'methods', 'version')


class NamesTest(TestCase):
  @parameterized.parameters(*PUBLIC)
  def test_public_name(self, name):
    if name in deprecation.NAMES:
      with self.warns(f'cxjax.{name} is now cxjax.{deprecation.NAMES[name]};'):
        found = getattr(cxjax, name)
    else:
      with self.warns():
        found = getattr(cxjax, name)
    self.assertIsNotNone(found)

  @parameterized.parameters(*MODULES)
  def test_module(self, name):
    namespace = {}
    if name in SAME:
      with self.warns():
        exec(f'from cxjax import {name}', namespace)
      return
    new = deprecation.MODULES[name]
    with warnings.catch_warnings(record=True) as seen:
      warnings.simplefilter('always')
      exec(f'from cxjax import {name}', namespace)
    self.assertIn(f'cxjax.{name} is now cxjax.{new};', str(seen[0].message))

  @parameterized.parameters(*deprecation.METHODS_NAMES.items())
  def test_name_of_the_old_methods(self, name, new):
    with self.warns(f'cxjax.methods.{name} is now cxjax.{new};'):
      self.assertIsNotNone(getattr(cxjax.methods, name))

  def test_names_that_there_never_were(self):
    with self.assertRaises(AttributeError):
      _ = cxjax.nothing
    with self.assertRaises(ImportError):
      from cxjax import nothing  # noqa: F401


OLD_FIELDS = dict(
  law='gaussian',
  readout=True,
  shared=True,
  norm='layer',
  centred=True,
  scale=2.0,
  positions='read',
)


class PlanTest(TestCase):
  """Arguments of `plan` and of curricula."""

  def test_law_and_readout(self):
    """The notebook on FitNets has these."""
    with self.warns('law= of plan is now projection=', 'readout= of plan is'):
      plan = cxjax.plan(
        BIG,
        SMALL,
        X,
        num_steps=9,
        layers=[('high', 'low')],
        law='identity',
        readout=True,
      )
    term = plan.stages[0].terms[0]
    self.assertEqual((term.projection, term.regressor), ('identity', True))

  def test_extracted(self):
    names = ('law', 'readout', 'shared', 'centred', 'positions')
    with self.warns(*(f'{name}= of extracted is now' for name in names)):
      hidden, output = cxjax.extracted(
        [('high', 'low')], (4, 5), cxjax.kl, **OLD_FIELDS, alpha=0.5
      )
    (term,) = hidden.terms
    self.assertEqual(
      (term.projection, term.regressor, term.shared_projection, term.tokens),
      ('gaussian', True, True, 'predicted'),
    )
    self.assertTrue(term.centered)
    self.assertEqual([t.weight for t in output.terms], [0.5, 0.5])

  def test_a_stage_of_one_term(self):
    with self.warns(
      "Stage('low', student, target, law=...) is now Stage('low', steps, terms",
      'law= of stage',
    ):
      stage = cxjax.Stage('low', 4, student='low', target='high', law='sparse')
    new = cxjax.Term('low', 'high', projection='sparse')
    self.assertEqual(stage, cxjax.Stage('low', 4, (new,)))

  def test_labels_mixed_in(self):
    with self.warns("Stage('output', loss, alpha=...) is now"):
      stage = cxjax.Stage('output', 4, loss=cxjax.kl, alpha=0.25)
    self.assertEqual(stage.terms, cxjax.one_shot(4, alpha=0.25)[0].terms)

  @parameterized.parameters(
    ('student', 'low', 'terms[0].student'),
    ('target', 'high', 'terms[0].target'),
    ('law', 'sparse', 'terms[0].projection'),
    ('readout', False, 'terms[0].regressor'),
    ('positions', 'all', 'terms[0].tokens'),
    ('alpha', 0.0, 'the weight of the term of the labels'),
  )
  def test_fields_of_a_stage(self, name, value, new):
    term = cxjax.Term('low', 'high', projection='sparse')
    stage = cxjax.Stage('low', 4, (term,))
    with self.warns(f'{name} of a Stage is now {new};'):
      self.assertEqual(getattr(stage, name), value)

  def test_alpha_of_a_stage(self):
    (stage,) = cxjax.one_shot(4, alpha=0.25)
    with self.warns('alpha of a Stage is now the weight'):
      self.assertEqual(stage.alpha, 0.25)

  def test_a_stage_given_both_ways_is_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'has terms and also student'):
      cxjax.Stage('a', 4, (cxjax.Term(),), student='low')
    with self.assertRaises(AttributeError):
      _ = cxjax.Stage('a', 4, (cxjax.Term(),)).lawn

  def test_keywords(self):
    key, network = jax.random.key(0), BIG
    with self.warns('law= of random_projection is now projection='):
      found = cxjax.random_projection(key, law='sparse', shape=(4, 3))
    want = cxjax.random_projection(key, 'sparse', (4, 3))
    np.testing.assert_array_equal(found, want)
    with self.warns('network= of taps is now model='):
      self.assertLen(cxjax.taps(network=network, x=X), 3)
    with self.warns('cxjax.cast is now', 'network= of with_compute_dtype is'):
      cxjax.cast(network=network, dtype=jnp.bfloat16)


class TaskTest(TestCase):
  @pytest.mark.slow
  def test_draw(self):
    """As the notebook: a partial of a task's `draw`, in a probe."""
    config = parity_mlp.tiny()
    task = builders.make_task(config)
    with self.warns('Parity.draw is now batch;'):
      batch = task.draw(jax.random.key(0), 3, 8)
    chex.assert_trees_all_equal(batch, task.batch(jax.random.key(0), 3, 8))
    draw = functools.partial(task.draw, batch_size=64)
    features = lambda x: x[:, :2]
    measure = jax.jit(cxjax.degree_one, static_argnums=(0, 1, 3))
    each = quiet(lambda: measure(features, draw, jax.random.key(1), 4))
    self.assertEqual(each.shape, (2, config.data.d))

  def test_modules_of_data(self):
    with warnings.catch_warnings(record=True) as seen:
      warnings.simplefilter('always')
      from cxjax.data import parity
    self.assertIn('is now cxjax.tasks.parity;', str(seen[0].message))
    self.assertIs(parity.Parity, parity_lib.Parity)
