"""Tests of options of methods with several values each."""

from absl.testing import absltest

from cxjax import errors
from cxjax.methods import registry
from experiments import variations


class VariationTest(absltest.TestCase):
  def test_each_value_of_an_option_is_a_method(self):
    methods = {
      'supervised': {'method': 'supervised'},
      'progressive': {'method': 'progressive', 'share': 0.5},
      'extracted_labels': {'method': 'extracted_labels', 'share': 0.4},
    }
    found = variations.varied(methods, *variations.read('share=0.05,0.1'))
    self.assertEqual(
      {name: options.get('share') for name, options in found.items()},
      {
        'supervised': None,
        'progressive': 0.5,
        'extracted_labels share=0.05': 0.05,
        'extracted_labels share=0.1': 0.1,
      },
    )
    both = variations.varied(found, 'centered', ['false', 'True'])
    self.assertLen(both, 6)
    self.assertEqual(
      both['extracted_labels share=0.1 centered=True'],
      {'method': 'extracted_labels', 'share': 0.1, 'centered': True},
    )

  def test_a_default_is_a_value_of_every_method(self):
    for name in registry.METHODS:
      if 'ending' not in (known := registry.options(name)):
        continue
      for option, default in known.items():
        if isinstance(default, str | int | float):
          one = {name: {'method': name}}
          found = variations.varied(one, option, [str(default)])
          self.assertEqual([*found.values()], [{**one[name], option: default}])

  def test_options_and_values_that_cannot_be_varied(self):
    methods = {'extracted': {'method': 'extracted'}}
    for text, message in {
      'share': '--vary=share must be an option',
      'share=0.1,': '--vary=share=0.1, must be',
      'share=0.1,0.1': 'different values',
      'shares=0.1': 'extracted has layers, loss',
      'share=much': "'much' must be a float, as 0.25",
      'regressor=maybe': "'maybe' must be a bool, as False",
      'share=0.1,2': 'extracted.share=2.0 must be',
      'width=-1': 'extracted.width=-1 must be',
      'projection=sparsee': "Did you mean 'sparse'",
      'loss=l3': "Unknown loss 'l3'",
      'layers=a': 'it is a tuple, and only numbers',
    }.items():
      with self.assertRaisesRegex(errors.UserError, message):
        variations.varied(methods, *variations.read(text))


if __name__ == '__main__':
  absltest.main()
