"""Tests of scores of a config at which a training ends."""

import math
import pathlib

from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import thresholds
from cxjax.training import metrics as metrics_lib
from experiments import parity_mlp


class ThresholdTest(parameterized.TestCase):
  @parameterized.parameters('stop_at', 'teacher.stop_at')
  @pytest.mark.slow
  def test_one_that_every_accuracy_reaches(self, field):
    config = parity_mlp.tiny()
    folder = pathlib.Path(self.create_tempdir().full_path)
    for value in (-0.5, 0.0):
      config.update_from_flattened_dict({field: value})
      experiment = builders.open_experiment(config, folder)
      with self.assertRaisesRegex(
        errors.UserError, f'^{field}={value} is reached by every accuracy'
      ):
        builders.check(experiment)

  @parameterized.parameters(
    ('accuracy', 0.5, True),
    ('accuracy', 2.0, True),
    ('accuracy', None, True),
    ('loss', 0.0, True),
    ('loss', -1.0, True),
    ('loss', math.inf, False),
    ('own', -3.0, True),
    ('own', -math.inf, False),
  )
  def test_others(self, name, value, taken):
    own = metrics_lib.Metric(lambda a, b: a - b, limit=1.0)  # As R squared.
    metric = {**metrics_lib.METRICS, 'own': own}[name]
    config = parity_mlp.tiny()
    config.teacher.stop_at = value
    if taken:
      return thresholds.check(config, name, metric)
    with self.assertRaisesRegex(errors.UserError, f'by every {name}'):
      thresholds.check(config, name, metric)
    return None
