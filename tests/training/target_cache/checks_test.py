"""Stored targets are compared with those of now."""

import dataclasses
import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.training import target_cache
from cxjax.training.target_cache import checks
from tests.training.target_cache import fixtures


@pytest.mark.slow
class CheckTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.spec = fixtures.live_spec()
    folder = root / 'cache'
    target_cache.write(folder, cls.spec, fixtures.CONFIG, 'float32')
    cls.cache = target_cache.load(folder)

  def assert_refused(self, message, spec):
    with self.assertRaisesRegex(errors.UserError, message):
      target_cache.check(self.cache, spec)

  def changed(self, **keys):
    keys = dataclasses.replace(self.spec.keys, **keys)
    return dataclasses.replace(self.spec, keys=keys)

  def test_the_same_run(self):
    target_cache.check(self.cache, self.spec)
    target_cache.check(self.cache, fixtures.stored_spec(self.spec, self.cache))

  def test_other_parameters_of_the_teacher(self):
    params = jax.tree.map(lambda leaf: leaf * 1.1, self.spec.teacher.params)
    other = fixtures.with_teacher(self.spec, params=params)
    self.assert_refused(r'parameters.final \(', other)
    same = mock.patch.object(
      checks, 'parameter_digests', lambda _: self.cache.record['parameters']
    )
    with same:  # As if they were not looked at.
      self.assert_refused("what the teacher says of 'hidden0'", other)

  def test_other_projections(self):
    spec = self.changed(stage=self.spec.keys.stage[::-1])
    self.assert_refused("what the teacher says of 'hidden0'", spec)

  def test_other_batches(self):
    """Also without the teacher."""
    for spec in (
      self.changed(data=self.spec.keys.stage[:1]),
      fixtures.stored_spec(
        self.changed(data=self.spec.keys.stage[:1]), self.cache
      ),
    ):
      self.assert_refused('not the one that is drawn here', spec)

  def test_another_term(self):
    stages = []
    for stage in self.spec.stages:
      terms = [dataclasses.replace(one, name='other') for one in stage.terms]
      stages.append(dataclasses.replace(stage, terms=tuple(terms)))
    spec = dataclasses.replace(self.spec, stages=tuple(stages))
    self.assert_refused("what the teacher says of '(hidden0|other)'", spec)


class IsNearTest(parameterized.TestCase):
  @parameterized.parameters(
    ([1.0, 2.0], [1.0, 2.0], True),
    ([1.0, 2.0], [1.0, 2.01], True),
    ([1.0, 2.0], [1.0, 2.1], False),
    ([1.0, np.inf], [1.0, np.inf], True),
    ([1.0, np.inf], [1.0, -np.inf], False),
    ([1.0, np.nan], [1.0, np.nan], True),
    ([1.0, np.nan], [1.0, 2.0], False),
    ([0.0, 0.0], [0.0, 0.0], True),
    (range(10), [*range(9), 0], True),
    (range(10), [*range(8), 0, 0], False),
  )
  def test_is_near(self, stored, live, expected):
    found = checks.is_near(np.array(stored), np.array(live), 0.01)
    self.assertEqual(found, expected)
