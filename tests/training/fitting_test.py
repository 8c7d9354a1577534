"""Tests of projections that are fitted on the batches of a run."""

import dataclasses
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.configs import builders
from cxjax.methods import fitted
from cxjax.methods import stage as stage_lib
from cxjax.training import compiled_steps
from cxjax.training import fitting
from experiments import parity_mlp
from experiments import pcfg_bert
import small_networks
from tests.training import runs


def config_of(module=parity_mlp, method='extracted_pca', **fields):
  config = module.tiny('extracted')
  config.method = method
  config.update_from_flattened_dict(fields)
  return config


def specification(tmp, config):
  """The run of a config whose teacher is as it was initialized."""
  experiment = builders.open_experiment(config, pathlib.Path(tmp))
  found = builders.abstract_teacher(experiment, [])
  spec = builders.teacher_spec(experiment)
  params = spec.student.init(jax.random.key(3), experiment.held_out['x'])
  teacher = dataclasses.replace(found, params=params, available=True)
  return builders.student_spec(experiment, teacher)


def matrices(spec):
  planned = spec.plan()[0]
  with jax.set_mesh(spec.layout.mesh):
    found = compiled_steps.CompiledSteps(spec).matrices(planned, 0)
  (matrix,) = found.values()
  return planned, np.asarray(matrix)


class FitTest(parameterized.TestCase):
  def check(self, method, module=parity_mlp, **fields):
    fields = {'extracted.norm': 'none', **fields}
    spec = specification(
      self.create_tempdir(), config_of(module, method, **fields)
    )
    planned, matrix = matrices(spec)
    self.assertEqual(matrix.shape[1:], next(iter(planned.matrices.values())))
    np.testing.assert_array_equal(matrix, matrices(spec)[1])  # Rebuilt.
    # The seeds share a PCA, and differ in their draws and starts.
    alike = method in ('extracted_pca', 'extracted_directions')
    self.assertEqual(np.allclose(matrix[0], matrix[1]), alike)
    (term,) = planned.stage.terms
    targets = []
    for batch in fitting.batches(spec):
      x = batch['x']
      want = spec.teacher_apply(spec.teacher.params, x)[1][term.target]
      real = x['mask'] if isinstance(x, dict) else np.ones(len(x), bool)
      targets.append(np.asarray(want)[np.asarray(real)])
    self.assertLen(targets, fitted.BATCHES)
    got = fitted.project(np.concatenate(targets), matrix[1])
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-3)
    self.assertAlmostEqual(float(np.mean(got**2)), 1.0, places=3)

  @parameterized.parameters(
    'extracted_pca', 'extracted_pca_rotated', 'extracted_centered'
  )
  @pytest.mark.slow
  def test_targets_are_centered_with_mean_square_1(self, method):
    self.check(method)

  NARROW = {'extracted.regressor': True, 'extracted.width': 2}

  @pytest.mark.slow
  def test_output_directions(self):
    self.check('extracted_directions', **self.NARROW)

  @pytest.mark.slow
  def test_tokens_of_padding_do_not_count(self):
    self.check('extracted_pca', pcfg_bert, **self.NARROW)

  def shared(self, *methods, **fields):
    """Directions and offsets of two layers of a teacher, for each method."""
    config = config_of(parity_mlp, **{'student.depth': 2, **fields})
    config.teacher.depth = 2
    for method in methods:
      config.method = method
      spec = specification(self.create_tempdir(), config)
      steps, found = compiled_steps.CompiledSteps(spec), []
      with jax.set_mesh(spec.layout.mesh):
        for i, planned in enumerate(spec.plan()[:2]):
          (matrix,) = steps.matrices(planned, i).values()
          found.append(np.asarray(matrix))
      yield spec, *found

  SHARED = {
    'extracted.norm': 'none',
    'extracted.shared_projection': True,
    'extracted_pca_rotated.shared_projection': True,
  }

  @pytest.mark.slow
  def test_layers_that_share_have_one_pair_of_axes(self):
    """The directions are the same, each layer has its mean and its scale."""
    methods = 'extracted_pca', 'extracted_pca_rotated', 'extracted_centered'
    for spec, *layers in self.shared(*methods, **self.SHARED):
      unit = [
        m[:, :-1] / np.linalg.norm(m[:, :-1], axis=(1, 2), keepdims=True)
        for m in layers
      ]
      np.testing.assert_allclose(*unit, rtol=1e-4, atol=1e-6)
      for i, matrix in enumerate(layers):
        got = np.concatenate(
          [
            fitted.project(
              spec.teacher_apply(spec.teacher.params, batch['x'])[1][
                f'hidden{i}'
              ],
              matrix[1],
            )
            for batch in fitting.batches(spec)
          ]
        )
        np.testing.assert_allclose(got.mean(0), 0, atol=1e-3)
        self.assertAlmostEqual(float(np.mean(got**2)), 1.0, places=3)

  @pytest.mark.slow
  def test_scale_is_that_of_the_projected_target(self):
    found = []
    for scale in (1.0, 2.0):
      term = stage_lib.Term('hidden0', 'hidden0', projection='pca', scale=scale)
      spec = runs.spec((stage_lib.Stage('a', 5, term),))
      found.append(matrices(spec)[1])
    one, two = found
    np.testing.assert_allclose(two[:, :-1], one[:, :-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two[:, -1], 2 * one[:, -1], rtol=1e-4, atol=1e-5)

  def test_batches_of_a_loader_are_its_first(self):
    """All batches of every chunk, of the first stream."""
    steps = lambda at: at // 4 * 4 + np.arange(4).reshape(4, 1)
    loader = mock.MagicMock()
    loader.__enter__.return_value.rows = lambda at: steps(at) - [0, 99]
    spec = mock.Mock(draw=lambda key, at, rows: {'x': rows})
    spec.host.loader, spec.host.fit_on = lambda: loader, ()
    spec.loop.log_every, spec.keys.data = 4, [jax.random.key(0)]
    found = [int(batch['x']) for batch in fitting.batches(spec)]
    self.assertEqual(found, list(range(fitted.BATCHES)))

  def test_the_names_are_the_registered_curricula(self):
    for name in fitted.FITTED:
      stage = stage_lib.Term('a', 'b', projection=name)
      self.assertTrue(fitting.is_needed((stage_lib.Stage('a', 1, stage),)))
    with self.assertRaisesRegex(errors.UserError, "'pac'.*pca"):
      stage_lib.Term('a', 'b', projection='pac')

  @parameterized.parameters(
    ({'extracted.width': 32}, "width 32 by 'pca', and there are 16"),
    ({'extracted.width': 16, 'batch_size': 1}, 'width 16 on 16 examples'),
  )
  @pytest.mark.slow
  def test_ranks_that_cannot_be_end_before_the_teacher(self, fields, message):
    config = config_of(**{'extracted.regressor': True, **fields})
    folder = pathlib.Path(self.create_tempdir().full_path)
    experiment = builders.open_experiment(config, folder)
    with self.assertRaisesRegex(errors.UserError, message):
      builders.check(experiment)


class DistillTest(parameterized.TestCase):
  """Fitted projections through `distill`: what decides them, and resuming."""

  BATCHES = small_networks.batches(number=4)

  def distill(self, workdir, batches=BATCHES, **kwargs):
    student = small_networks.parameters(1, low=3)
    plan = cxjax.plan(
      small_networks.BIG,
      cxjax.from_fn(small_networks.two_layers, student),
      self.BATCHES[0],
      num_steps=6,
      layers=[('high', 'low')],
      projection='pca_rotated',
      share=0.7,
    )
    options = dict(log_every=1, save_every=1) | kwargs
    return cxjax.distill(plan, batches, workdir=workdir, **options)

  @pytest.mark.slow
  def test_a_resumed_run_fits_the_same(self):
    folder = self.create_tempdir().full_path
    whole, _ = self.distill(None)

    def stop(record):
      if record['step'] == 2:
        raise InterruptedError

    with self.assertRaises(InterruptedError):
      self.distill(folder, on_record=stop)
    resumed, _ = self.distill(folder)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    with self.assertRaisesRegex(errors.UserError, 'fit_on'):
      self.distill(folder, fit_on=self.BATCHES[1:])

  @parameterized.parameters(
    (dict(fit_on=iter(BATCHES)), 'fit_on is a list_iterator: give a list'),
    (dict(fit_on=BATCHES[:1], last_batch='drop'), None),
    (dict(fit_on=[BATCHES[0][:5]], last_batch='drop'), 'No batch to fit'),
    (dict(fit_on=[BATCHES[0][:3]], last_batch='pad'), 'width 3 on 3 examples'),
    (dict(fit_on=[BATCHES[0][:, :2]]), 'batch 1 to fit on'),
  )
  @pytest.mark.slow
  def test_batches_to_fit_on(self, options, message):
    if message is None:
      self.distill(None, **options)
      return
    with self.assertRaisesRegex(errors.UserError, message):
      self.distill(None, **options)

  def test_batches_that_nothing_is_fitted_on_are_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'leave it out'):
      cxjax.distill(small_networks.ONE, self.BATCHES, fit_on=self.BATCHES)


if __name__ == '__main__':
  absltest.main()
