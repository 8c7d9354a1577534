"""Tests of the registry of methods."""

import dataclasses

from absl.testing import parameterized
import ml_collections

from cxjax import errors
from cxjax.methods import curricula
from cxjax.methods import losses
from cxjax.methods import registry

# The last 50 steps are the final teacher's.
AVAILABLE = ((10, 0.5), (20, 0.6), (30, 0.8), (40, 0.95), (50, 1.0))
CONTEXT = registry.Context(
  num_steps=60,
  pairs=lambda: (('t1', 's0'),),
  checkpoints=AVAILABLE,
  output={'loss': losses.mse, 'alpha': 0.0, 'top_k': 0},
)
STAGES = {'stages': ({'terms': ({},)},)}


def block(name, **fields):
  """The block of a config, with its defaults."""
  options = {**registry.options(name), **fields}
  return ml_collections.ConfigDict(options)


def build(name, **fields):
  return registry.build(name, block(name, **fields), CONTEXT)


class BuildTest(parameterized.TestCase):
  @parameterized.parameters(*registry.METHODS)
  def test_lasts_num_steps(self, name):
    stages = build(name, **(STAGES if name == 'custom' else {}))
    self.assertEqual(sum(stage.steps for stage in stages), 60)

  def test_supervised_needs_no_teacher(self):
    stages = registry.build(
      'supervised', block('supervised'), registry.Context(60)
    )
    self.assertEqual(stages, curricula.supervised(60))

  @parameterized.parameters('one_shot', 'progressive', 'extracted')
  def test_output_stage_is_that_of_the_context(self, name):
    output = {'loss': losses.hard_kl, 'alpha': 0.5, 'top_k': 0}
    context = dataclasses.replace(CONTEXT, output=output)
    teacher, labels = registry.build(name, block(name), context)[-1].terms
    self.assertIs(teacher.loss, losses.hard_kl)
    self.assertEqual((teacher.weight, labels.weight), (0.5, 0.5))

  def test_progressive_ends_with_the_final_teacher(self):
    stages = build('progressive', rule='list', checkpoints=(20, 40), share=0.1)
    expected = curricula.progressive((20, 40, None), (3, 3, 54), losses.mse)
    self.assertEqual(stages, expected)

  def test_extracted_matches_by_depth(self):
    expected = curricula.extracted((('t1', 's0'),), (30, 30), losses.mse)
    self.assertEqual(build('extracted', share=0.5), expected)

  def test_extracted_with_every_setting(self):
    fields = dict(
      projection='sparse',
      regressor=True,
      width=5,
      shared_projection=True,
      norm='layer',
      centered=True,
      scale=2.0,
      tokens='predicted',
    )
    steps, layers = (20, 40), (('t0', 's0'),)
    others = dict(layers=layers, steps=steps, freeze=True, checkpoint=0)
    others |= {'ending': 'mixed'}
    unused = {'loss', 'share'}
    self.assertCountEqual(
      {*fields, *others, *unused}, registry.METHODS['extracted'].options
    )
    found = build('extracted', loss='cosine', **fields, **others)
    expected = curricula.extracted(
      layers,
      steps,
      losses.mse,
      hidden_loss='cosine',
      freeze=True,
      checkpoint=0,
      ending='mixed',
      **fields,
    )
    self.assertEqual(found, expected)

  def test_names_are_values_of_the_others(self):
    learned = {'projection': 'identity', 'regressor': True}
    self.assertEqual(build('fitnets'), build('extracted', **learned))
    labels = {'ending': 'labels', 'share': 0.1}
    self.assertEqual(build('extracted_labels'), build('extracted', **labels))
    self.assertEqual(
      build('extracted_centered_labels'),
      build('extracted', projection='centered', **labels),
    )
    rotated = {'projection': 'pca_rotated', 'shared_projection': False}
    self.assertEqual(
      build('extracted_pca_rotated_labels'),
      build('extracted', **rotated, **labels),
    )
    self.assertEqual(
      build('extracted_pca_rotated'), build('extracted', **rotated)
    )
    self.assertEqual(build('joint_fading'), build('joint', fade=0.5))
    for name in ('centered', 'pca'):
      self.assertEqual(
        build(f'extracted_{name}'), build('extracted', projection=name)
      )

  def test_directions_of_the_output_are_of_the_last_layer(self):
    hidden, output = build('extracted_directions')
    (term,) = hidden.terms
    last = build('extracted')[-2].terms[0]
    self.assertEqual((term.target, term.student), (last.target, last.student))
    self.assertEqual(term.projection, 'output_directions')
    self.assertEqual(output, build('extracted', layers=[('a', 'b')])[-1])

  def test_output_then_labels(self):
    context = registry.Context(60, output={'alpha': 0.3})
    fields = block('one_shot_labels', share=0.1)
    first, last = registry.build('one_shot_labels', fields, context)
    expected = curricula.one_shot(6, alpha=0.3)[0]
    self.assertEqual((first, last.steps), (expected, 54))
    self.assertEqual((last.name, last.needs_teacher), ('labels', False))

  def test_an_ending_by_labels_does_not_read_alpha(self):
    context = registry.Context(
      60, pairs=lambda: [('a', 'b')], output={'alpha': 0.3}
    )
    for name in ('extracted_labels', 'joint'):
      fields = block(name, ending='labels')
      *_, term = registry.build(name, fields, context)[-1].terms
      self.assertEqual((term.target, term.weight), ('labels', 1.0))

  def test_joint_with_every_setting(self):
    fields = dict(
      projection='sparse',
      regressor=False,
      shared_projection=True,
      norm='layer',
      centered=True,
      scale=2.0,
      tokens='predicted',
      weight=0.5,
      fade=1.0,
      ending='labels',
      checkpoint=3,
    )
    layers = (('t0', 's0'),)
    found = build('joint', loss='cosine', layers=layers, **fields)
    expected = curricula.joint(layers, 60, hidden_loss='cosine', **fields)
    self.assertEqual(found, expected)
    unused = {'loss', 'layers', 'width'}
    self.assertCountEqual({*fields, *unused}, registry.METHODS['joint'].options)

  def test_late_to_early_teaches_the_last_layer_to_an_early_one(self):
    three = lambda: [(f't{i}', f's{i}') for i in range(3)]
    context = registry.Context(60, pairs=three)
    for layer in (1, 2):
      fields = block('late_to_early', layer=layer, share=0.5)
      hidden, output = registry.build('late_to_early', fields, context)
      (term,) = hidden.terms
      self.assertEqual((term.target, term.student), ('t2', f's{layer - 1}'))
      self.assertEqual((hidden.steps, output.steps), (30, 30))
    with self.assertRaisesRegex(errors.UserError, 'layer=4 .* 3 layers'):
      fields = block('late_to_early', layer=4)
      registry.build('late_to_early', fields, context)
    pairs = ('t0', 's0'), ('t1', 's2')
    fields = block('late_to_early', layers=pairs)
    term = registry.build('late_to_early', fields, context)[0].terms[0]
    self.assertEqual((term.target, term.student), ('t1', 's0'))

  def test_pairs_of_the_context_come_before_all_layers(self):
    context = registry.Context(60, pairs=lambda: [('a', 'b')])
    for name in ('extracted', 'joint', 'late_to_early'):
      term = registry.build(name, block(name), context)[0].terms[0]
      self.assertEqual((term.target, term.student), ('a', 'b'))

  @parameterized.parameters(
    (dict(loss='l1'), "extracted.loss 'l1'.*l2, cosine"),
    (dict(steps=(10, 20)), 'sum num_steps=60, not 30'),
    (dict(steps=(10, 20, 30)), 'must be 2 numbers'),
    (dict(share=1.0), 'share=1.0'),
    (dict(layers=('t0', 's0')), "'t0' is not a pair"),
  )
  def test_extracted_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      build('extracted', **fields)

  def test_unknown_method_lists_the_methods(self):
    message = (
      "method 'one_shoot'. Did you mean 'one_shot'.*supervised, one_shot"
    )
    with self.assertRaisesRegex(errors.UserError, message):
      registry.build('one_shoot', None, CONTEXT)
