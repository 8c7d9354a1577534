"""Tests of programs that are compiled ahead of time."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from cxjax.training import programs
from cxjax.training import trainer
from tests.training import runs

X = jax.ShapeDtypeStruct((3,), jnp.float32)


def double(x):
  return 2 * x


class ProgramsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.programs = programs.Programs()

  def compiled(self, name, x):
    """The program, and how many times its function was traced for it."""
    fun = mock.Mock(side_effect=double)
    return self.programs.compile(name, fun, x), fun.call_count

  def test_one_that_was_prepared_is_not_traced_again(self):
    self.programs.prepare('double', double, X)
    self.assertIn('double', self.programs)
    found, traced = self.compiled('double', jnp.ones(3))
    self.assertEqual(traced, 0)
    self.assertEqual(found(jnp.ones(3)).tolist(), [2, 2, 2])

  def test_options_are_those_of_the_compiler(self):
    name = 'xla_cpu_enable_fast_math'
    known = programs.Programs({name: False})
    self.assertEqual(known.call('double', double, jnp.ones(1)).tolist(), [2])
    unknown = programs.Programs({'no_option': False})
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'no_option'):
      unknown.compile('double', double, X)

  def test_other_shapes_than_were_prepared_are_compiled_when_called(self):
    self.programs.prepare('double', double, X)
    found, traced = self.compiled('double', jnp.ones(2))
    self.assertEqual(traced, 1)
    self.assertEqual(found(jnp.ones(2)).tolist(), [2, 2])

  def test_settings_of_the_callers_thread_hold(self):
    with jax.default_matmul_precision('highest'):
      self.programs.prepare('double', double, X)
      _, traced = self.compiled('double', jnp.ones(3))
    self.assertEqual(traced, 1)

  def test_an_error_of_the_compiler_reaches_the_caller(self):
    lowered = mock.Mock()
    lowered.compile.side_effect = jax.errors.JaxRuntimeError('no memory')
    with mock.patch.object(jax, 'jit') as jit:
      jit.return_value.lower.return_value = lowered
      self.programs.prepare('double', double, X)
      with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'no memory'):
        self.programs.compile('double', double, X)


@pytest.mark.slow
class NextStageTest(parameterized.TestCase):
  def test_every_later_stage_is_compiled_before_it_begins(self):
    """And what was prepared is what the run dispatches."""
    ahead, original = {}, programs.Programs._from_ahead

    def from_ahead(self, name, args):
      found = original(self, name, args)
      ahead[name] = found is not None
      return found

    stages = (
      runs.Stage('hidden', 8, runs.HIDDEN),
      runs.Stage('output', 8, runs.Term()),
      runs.Stage('labels', 8, runs.LABELS),
    )
    spec = runs.spec(stages)
    folder = pathlib.Path(self.create_tempdir().full_path)
    with mock.patch.object(programs.Programs, '_from_ahead', from_ahead):
      trainer.fit(spec, folder, 'run')
    found = [ahead['train_many_steps', stage.objective] for stage in stages]
    self.assertEqual(found, [False, True, True])
