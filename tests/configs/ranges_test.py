"""Tests of what the numbers of a config may be."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax.configs import ranges
from experiments import parity_mlp
from experiments import text_bert

NAN, INF = math.nan, math.inf


class LimitsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('seed', -1),
    ('seed', 2**32),
    ('num_steps', 0),
    ('mesh.cpu_devices', 0),
    ('num_steps', 2**31),
    ('optimizer.learning_rate', INF),
    ('optimizer.learning_rate', 0.0),
    ('optimizer.b1', 1.0),
    ('optimizer.b1', -1.0),
    ('optimizer.b2', NAN),
    ('optimizer.momentum', -1.0),
    ('optimizer.weight_decay', NAN),
    ('optimizer.weight_decay', -1.0),
    ('optimizer.warmup', 1.0),
    ('teacher.optimizer.learning_rate', NAN),
    ('teacher.stop_at', NAN),
    ('teacher.overrun', -0.1),
    ('teacher.save_at', ('a',)),
    ('save_minutes', -1.0),
    ('save_minutes', NAN),
    ('temperature', INF),
    ('alpha', 1.1),
    ('extracted.scale', INF),
    ('extracted.share', 1.0),
    ('extracted.steps', ('a', 'b')),
    ('extracted.steps', (30.5, 29.5)),
    ('progressive.accuracies', (0.5, NAN)),
    ('progressive.accuracies', (True,)),
    ('progressive.checkpoints', ('x',)),
    ('extracted.checkpoint', -2),
    ('student.init_std', -1.0),
    ('student.dropout', NAN),
    ('teacher.width', 0),
    ('mesh.seed', 0),
  )
  def test_refuses(self, name, value):
    config = text_bert.tiny()
    ranges.check(config.to_dict())
    config.update_from_flattened_dict({name: value})
    with self.assertRaises(errors.UserError) as caught:
      ranges.check(config.to_dict())
    self.assertStartsWith(str(caught.exception), f'{name}=')
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ('seed', 2**32 - 1),
    ('optimizer.b1', 0),
    ('teacher.stop_at', 1.5),
    ('stop_at', INF),
    ('extracted.steps', (30, 30)),
    ('progressive.accuracies', (0, 1)),
    ('extracted.checkpoint', -1),
    ('extracted.width', 0),
  )
  def test_accepts(self, name, value):
    config = parity_mlp.tiny()
    config.update_from_flattened_dict({name: value})
    ranges.check(config.to_dict())

  @parameterized.parameters(
    (ranges.SHARE, 'a number in (0, 1)'),
    (ranges.RATE, 'a number in [0, 1)'),
    (ranges.POSITIVE, 'a finite number above 0'),
    (ranges.NOT_NEGATIVE, 'a finite number not below 0'),
    (ranges.COUNT, 'a whole number from 1 to 2147483647'),
  )
  def test_says_what_is_allowed(self, allowed, text):
    self.assertEqual(str(allowed), text)


if __name__ == '__main__':
  absltest.main()
