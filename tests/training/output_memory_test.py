"""Tests for how much of the outputs of a run is held at once."""

import dataclasses
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import pytest

from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.training import compiled_steps
from cxjax.training import metrics
from cxjax.training import output_memory
from tests.training import runs

# Outputs of 4 examples and two classes are large, in pieces of one example.
SMALL = mock.patch.multiple(
  output_pieces, WHOLE=63, WHOLE_ON_CPU=63, PIECE_ON_CPU=16, FEWEST_ON_CPU=1
)


class EvalPartsTest(parameterized.TestCase):
  @parameterized.parameters(
    ((64,), 2, 1),
    ((32_768,), 2, 1),
    ((32_769,), 2, 3),
    ((65_536,), 2, 2),
    ((64, 512), 2, 1),
    ((96, 512), 2, 2),
    ((97, 512), 2, 3),
    ((256, 128), 50_257, 256),  # 51 MB a text of two students.
    ((64, 128), 1_024, 1),  # 64 MiB for two students.
    ((64, 128), 1_025, 2),
  )
  @pytest.mark.slow
  def test_divide_the_examples_into_few_rows_and_bytes(
    self, shape, classes, parts
  ):
    x = jax.ShapeDtypeStruct((*shape, 3)[:2], jnp.float32)
    if len(shape) == 2:
      x = jax.ShapeDtypeStruct(shape, jnp.int32)
    student = types.SimpleNamespace(
      init=lambda key, x: {},
      apply=lambda params, x: (jnp.zeros((*shape, classes)), {}),
    )
    held_out = {'x': x}
    spec = dataclasses.replace(runs.spec(), student=student, held_out=held_out)
    on_accelerators = output_memory.EVAL_ROWS
    with mock.patch.object(output_memory, 'EVAL_ROWS_ON_CPU', on_accelerators):
      self.assertEqual(output_memory.eval_parts(spec), parts)

  @pytest.mark.cpu
  def test_parts_on_a_cpu_stay_in_its_cache(self):
    x = jnp.zeros((4_096, runs.BITS))
    spec = dataclasses.replace(runs.spec(), held_out={'x': x})
    self.assertEqual(output_memory.eval_parts(spec), 4)


class SplitTest(parameterized.TestCase):
  def split(self, spec, stage=0, **options):
    steps = compiled_steps.CompiledSteps(spec)
    models = output_memory.Models(
      steps._student, steps._training, steps._teacher
    )
    with jax.set_mesh(runs.MESH):
      return output_memory.split(models, spec, spec.stages[stage], **options)

  def test_small_outputs_and_hidden_stages_are_whole(self):
    spec = runs.spec()
    self.assertNotIsInstance(self.split(spec, 2).student, output_split.Split)
    with SMALL:
      self.assertNotIsInstance(self.split(spec, 0).student, output_split.Split)
      found = self.split(spec, 2)
    self.assertIsInstance(found.student, output_split.Split)
    self.assertIsInstance(found.teacher, output_split.Split)

  def test_stored_targets_need_no_teacher(self):
    with SMALL:
      found = self.split(runs.spec(), 2, stored=True)
    self.assertIsInstance(found.student, output_split.Split)
    self.assertNotIsInstance(found.teacher, output_split.Split)

  def test_an_example_whose_output_is_large_is_evaluated_in_pieces(self):
    spec = runs.spec()
    steps = compiled_steps.CompiledSteps(spec)
    models = steps._student, steps._teacher
    with jax.set_mesh(runs.MESH):
      find = lambda metrics: output_memory.eval_models(*models, spec, metrics)
      self.assertEqual(find(spec.metrics), models)
      with mock.patch.multiple(output_pieces, WHOLE=3, WHOLE_ON_CPU=3):
        for found in find(spec.metrics):
          self.assertIsInstance(found, output_split.Split)
        # A function of the user may compare rows with each other.
        self.assertEqual(find({'own': metrics.Metric(max)}), models)

  @pytest.mark.slow
  def test_a_run_in_pieces_is_that_of_the_whole(self):
    """Both terms of the stage, for two students, in parts of a batch."""
    spec = runs.spec(runs.STAGES[2:], microbatches=2)
    whole = runs.fit(spec, self.create_tempdir().full_path)
    with SMALL:
      spec = dataclasses.replace(spec)
      pieces = runs.fit(spec, self.create_tempdir().full_path)
    chex.assert_trees_all_close(pieces.params, whole.params, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
