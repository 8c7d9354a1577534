"""Tests of the fields that every experiment has."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax.configs import ranges
from cxjax.methods import registry
from experiments import base


class ChooseTest(parameterized.TestCase):
  @parameterized.parameters(
    ('one_shot,large', 'large one_shot'),
    ('large,one_shot', 'large one_shot'),
    ('large', 'large extracted'),
    ('supervised', 'small supervised'),
    ('custom', 'small custom'),
  )
  def test_words_are_a_method_and_a_size(self, variant, expected):
    sizes = {
      'small': lambda method: f'small {method}',
      'large': lambda method: f'large {method}',
    }
    self.assertEqual(base.choose(variant, sizes), expected)

  def test_another_word_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, "'smal'.*mean 'small'"):
      base.choose('one_shot,smal', {'small': base.get_config})

  @parameterized.parameters('extracted,one_shot', 'small,extracted,large')
  def test_two_of_a_kind_are_an_error(self, variant):
    sizes = dict.fromkeys(('small', 'large'), base.get_config)
    with self.assertRaisesRegex(errors.UserError, 'names two .*Give one'):
      base.choose(variant, sizes)


class ConfigTest(absltest.TestCase):
  def test_every_registered_method_has_its_block(self):
    config = base.get_config('extracted')
    for name, method in registry.METHODS.items():
      self.assertEqual(
        config[name].to_dict(),
        {**({} if method.like else {'rate_factor': 1.0}), **method.options},
      )

  def test_compared_methods_are_registered(self):
    self.assertContainsSubset(base.METHODS, registry.METHODS)
    self.assertNotIn('custom', base.METHODS)

  def test_every_number_is_in_its_range(self):
    config = base.get_config('extracted')
    config.student = base.transformer(width=8, heads=2, depth=1)
    config.data = base.text()
    config.task, config.model = 'masked_text', 'transformer'
    ranges.check(config.to_dict())

  def test_two_configs_share_no_block(self):
    one, two = base.get_config('extracted'), base.get_config('extracted')
    one.teacher.optimizer.learning_rate = one.optimizer.learning_rate = 7.0
    one.extracted.share = 0.1
    self.assertEqual(two.teacher.optimizer.learning_rate, 1e-3)
    self.assertEqual(two.optimizer.learning_rate, 1e-3)
    self.assertEqual(two.extracted.share, 0.25)


if __name__ == '__main__':
  absltest.main()
