"""Tests of the students that are compared, with tiny models."""

import pathlib
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.api import named_plans
from cxjax.configs import builders
from cxjax.configs import contest
from cxjax.configs import experiment
from cxjax.models import sentence
from cxjax.models import transformer
import scripts

contestants = scripts.load('experiments.contestants')


def encoder(depth, width):
  return transformer.Transformer(
    vocab_size=11,
    num_classes=0,
    max_length=4,
    width=width,
    heads=2,
    depth=depth,
    causal=False,
  )


class CutTest(absltest.TestCase):
  @pytest.mark.slow
  def test_students_of_minilm_are_its_blocks_and_differ_by_seed(self):
    tokens = jax.random.randint(jax.random.key(0), (40, 3, 4), 0, 11)
    batches = [{'tokens': each} for each in np.asarray(tokens)]
    teacher, random = encoder(4, 8), encoder(2, 4)
    student = sentence.SentenceEncoder(random, features=8)
    variables = teacher.init(jax.random.key(1), batches[0])
    found = types.SimpleNamespace(
      encoder=(teacher, variables),
      student=student,
      fresh=lambda seed: student.init(jax.random.key(seed), batches[0]),
      batches=batches,
    )
    make, layers = contestants._cut_minilm(found)
    self.assertEqual(layers, (('block0', 'block0'), ('block3', 'block1')))
    first, again, second = make(0), make(0), make(1)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    ours, theirs = first.params['params'], second.params['params']
    self.assertFalse(
      jnp.array_equal(ours['linear']['kernel'], theirs['linear']['kernel'])
    )
    # Channels are kept but for a factor.
    unit = lambda x: x / jnp.linalg.norm(x, axis=0, keepdims=True)
    kernel = lambda params: unit(params['tokens']['embedding'])
    cosines = kernel(variables['params']).T @ kernel(ours['encoder'])
    np.testing.assert_allclose(jnp.abs(cosines).max(0), 1, rtol=1e-5)
    output, activations = first.apply(first.params, batches[0])
    self.assertEqual(output.shape, (3, 8))
    self.assertIn('block1', activations)


class PlansTest(parameterized.TestCase):
  @parameterized.parameters('parity_mlp', 'pcfg_bert')
  @pytest.mark.slow
  def test_every_method_has_the_plan_of_its_config(self, name):
    folder = pathlib.Path(self.create_tempdir().full_path)
    found = contestants.find(name, 'tiny', folder)
    planner = named_plans.Planner(
      found.teacher,
      found.student(0),
      named_plans.example_of(found.batches),
      found.options['layers'],
      named_plans.Output(),
    )
    self.assertContainsSubset(contestants.OTHERS, found.methods)
    # launch.py --compare --rates compares the same plans.
    config = contestants.CONFIGS[name].get_config('extracted,tiny')
    config, teacher = experiment.load(config, folder)
    one = builders.open_experiment(config, folder)
    experiments = {method: one.with_method(method) for method in found.methods}
    plans = contest._with_plans(experiments, teacher).methods
    for method, options in found.methods.items():
      plan = planner.plan(method, options, config.num_steps)
      self.assertEqual(str(plan), str(plans[method]))


if __name__ == '__main__':
  absltest.main()
