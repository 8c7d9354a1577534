"""A run from stored hidden states is the live run, whatever its loss."""

import contextlib
import dataclasses
import pathlib
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import output_pieces
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.training import compiled_steps
from cxjax.training import target_cache
from cxjax.training import trainer
from tests.training.target_cache import fixtures

pytestmark = pytest.mark.slow

Stage, Term = stage_lib.Stage, stage_lib.Term
LABELS = Term(target='labels', weight=0.3)
# All outputs are large, in pieces of a few rows.
SMALL = dict(WHOLE_ON_CPU=8, PIECE_ON_CPU=16, FEWEST_ON_CPU=3)


def within(student, teacher):
  """A loss that compares the examples of a batch with each other."""
  return jnp.mean((student - student[:1]) * (teacher - teacher[:1]), axis=-1)


@contextlib.contextmanager
def in_pieces():
  """Limits the rows of outputs; asserts that they were limited."""
  with (
    mock.patch.multiple(output_pieces, **SMALL),
    mock.patch.object(
      output_pieces, 'summed_loss', wraps=output_pieces.summed_loss
    ) as spy,
  ):
    yield
  spy.assert_called()


class HiddenStatesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def stored(self, spec, dtype='float32'):
    folder = self.folder / 'cache'
    self.summary = target_cache.write(folder, spec, {}, dtype, 'hidden')
    cache = target_cache.load(folder)
    spec = fixtures.with_teacher(
      spec,
      params=jax.eval_shape(lambda params: params, spec.teacher.params),
      available=False,
    )
    return target_cache.served(cache, spec)

  def assert_same_run(self, spec):
    """Asserts that losses and students are those of a live teacher."""
    live = trainer.fit(spec, self.folder / 'live', 'live')
    stored = trainer.fit(self.stored(spec), self.folder / 'stored', 'stored')
    for one, other in zip(live.records, stored.records, strict=True):
      self.assertEqual(one['step'], other['step'])
      for name in one:
        if name.startswith('loss'):
          np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
    # Another program may fuse, and round, a projection in another way.
    chex.assert_trees_all_close(live.params, stored.params, rtol=0, atol=1e-7)

  @parameterized.named_parameters(
    ('temperature', (Term(loss=losses.logit_loss('kl', 3.0, False)),)),
    ('reverse', (Term(loss='reverse_kl'),)),
    ('jensen_shannon', (Term(loss='jensen_shannon'),)),
    ('mse', (Term(loss='mse'),)),
    ('labels', (LABELS, Term(weight=0.7))),
    ('top_k', (Term(top_k=2), LABELS)),
    ('two', (Term(), Term(loss='mse', weight=0.1), Term(top_k=2, name='few'))),
  )
  def test_outputs(self, terms):
    """Whole and in pieces: the head is the teacher's."""
    spec = fixtures.live_spec(stages=(Stage('output', 12, terms),), period=12)
    self.assert_same_run(spec)
    with in_pieces():
      spec = dataclasses.replace(spec, microbatches=2)
      for name in ('live', 'stored', 'cache'):
        (self.folder / name).rename(self.folder / f'{name} whole')
      self.assert_same_run(spec)

  @parameterized.named_parameters(
    ('of_a_batch', Term(loss=within)),
    ('centered', Term(loss='mse', centered=True, scale=2.0)),
    ('regressor', Term('hidden0', 'logits', regressor=True, loss='l2')),
    ('projected', Term('hidden0', 'logits', projection='gaussian')),
  )
  def test_outputs_that_are_not_compared_row_by_row(self, term):
    terms = (term, Term(weight=0.5, name='kl'))
    spec = fixtures.live_spec(stages=(Stage('output', 12, terms),), period=12)
    self.assert_same_run(spec)
    found = target_cache.load(self.folder / 'cache').read(0, 3)[0]['targets']
    width = {name: leaf.shape[-1] for name, leaf in found.items()}
    if term.projection:
      self.assertEqual(width, {'hidden0': 8, 'kl': 16})
    else:
      self.assertEqual(width, {term.label: 16})

  def test_text_with_positions_and_a_hidden_stage(self):
    """Two students share batches of tokens, predicted where they are masked."""
    config = fixtures.text_config(self.folder)
    config.alpha, config.microbatches = 0.2, 2
    spec = fixtures.live_spec(config, period=20, folder=self.folder)
    with in_pieces():
      self.assert_same_run(spec)
    found = target_cache.load(self.folder / 'cache').read(1, 7)[0]['targets']
    self.assertEqual(found['output'].shape, (1, 8, 11, config.teacher.width))

  def test_each_checkpoint_has_a_head(self):
    config = fixtures.mlp_config('progressive')
    spec = fixtures.live_spec(config, period=12)
    self.assert_same_run(spec)
    names = sorted(path.name for path in self.folder.glob('cache/head_*'))
    self.assertEqual([one.checkpoint for one in spec.stages], [40, None])
    self.assertEqual(names, ['head_40.bin', 'head_final.bin'])

  def test_a_teacher_in_bfloat16(self):
    """Its hidden states keep their dtype; float32 is for the projections."""
    spec = fixtures.live_spec(period=60)
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype('bfloat16'), tree)
    apply = spec.teacher.apply
    spec = fixtures.with_teacher(
      spec,
      params=half(spec.teacher.params),
      apply=lambda params, x: apply(params, x.astype('bfloat16')),
    )
    self.assert_same_run(spec)
    cache = target_cache.load(self.folder / 'cache')
    kinds = [
      next(iter(cache.read(stage, number)[0]['targets'].values())).dtype
      for stage, number in ((0, 3), (1, 30))
    ]
    self.assertEqual(kinds, ['float32', 'bfloat16'])
    self.assertEqual([str(w.dtype) for w in cache.head(None)], ['bfloat16'] * 2)

  def test_the_head_is_run_and_nothing_below_it(self):
    """FLOPs of the plan, and parameters on the devices."""
    spec = fixtures.live_spec(period=60)
    stored = self.stored(spec)
    costs = [one.teacher_flops for one in stored.plan_costs(stored)]
    live = [one.teacher_flops for one in spec.plan_with_costs()]
    table = stage_plan.format_plan(stored.plan_costs(stored))
    self.assertRegex(table, rf'\| +{costs[1]:.0f} \|\n')
    self.assertEqual(costs[0], 0)
    # `[8, 16] @ [16, 2]` and the bias.
    self.assertBetween(costs[1], 8 * 16 * 2 * 2, 8 * 16 * 2 * 2 + 64)
    self.assertLess(costs[1], live[1] / 4)
    steps, planned = compiled_steps.CompiledSteps(stored), stored.plan()
    self.assertIsNone(steps.stage_teacher(planned[0]))
    shapes = [leaf.shape for leaf in steps.stage_teacher(planned[1])]
    self.assertCountEqual(shapes, [(1, 2), (16, 2)])

  def test_the_summary_counts_the_head(self):
    spec = fixtures.live_spec(period=60)
    self.stored(spec)
    path = self.folder / 'cache' / 'head_final.bin'
    self.assertEqual(self.summary['head_bytes'], path.stat().st_size)
    self.assertEqual(path.stat().st_size, 4 * (16 * 2 + 2) + 20)
    sizes = [stage['bytes'] for stage in self.summary['stages']]
    self.assertEqual(self.summary['bytes'], sum(sizes) + path.stat().st_size)
    last = self.summary['stages'][1]
    self.assertEqual(last['raw_bytes'], last['tokens'] * 16 * 4)
    table = target_cache.format_summary(self.summary)
    self.assertIn("the teacher's head", table)
    # What is stored needs the trunk alone.
    logits = target_cache.write(self.folder / 'logits', spec, {}, 'float32')
    self.assertNotIn('head_bytes', logits)
    self.assertLess(last['teacher_flops'], logits['stages'][1]['teacher_flops'])


class RefusedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.spec = fixtures.live_spec(period=60)
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'cache'

  def write(self, kind='hidden'):
    target_cache.write(self.folder, self.spec, {}, 'float32', kind)
    return target_cache.load(self.folder)

  @parameterized.parameters(
    ('hidden', 'logits', 'last hidden states .* asks for the logits'),
    ('logits', 'hidden', 'the logits .* asks for the last hidden states'),
  )
  def test_the_other_kind(self, kind, other, message):
    cache = self.write(kind)
    message = f'{message}.*give cache.output={kind}, or another folder'
    with self.assertRaisesRegex(errors.UserError, message):
      cache.require_kind(other)
    with self.assertRaisesRegex(errors.UserError, message):
      self.write(other)

  @parameterized.parameters('flipped', 'cut', 'gone')
  def test_a_damaged_head(self, damage):
    self.write()
    path = self.folder / 'head_final.bin'
    content = bytearray(path.read_bytes())
    if damage == 'flipped':
      content[40] ^= 1
    path.write_bytes(content[:-1] if damage == 'cut' else content)
    if damage == 'gone':
      path.unlink()
    with self.assertRaisesRegex(errors.UserError, 'head_final.*is damaged'):
      target_cache.load(self.folder).head(None)

  def test_the_head_of_another_width(self):
    cache = self.write()
    config = fixtures.mlp_config()
    config.teacher.width = 24
    spec = fixtures.live_spec(config, period=60)
    with self.assertRaisesRegex(errors.UserError, 'not the one that is found'):
      target_cache.served(cache, spec)

  def test_another_teacher(self):
    """Its hidden states are not those that are stored."""
    cache = self.write()
    params = jax.tree.map(lambda leaf: leaf * 1.1, self.spec.teacher.params)
    spec = fixtures.with_teacher(self.spec, params=params)
    digests = mock.patch(
      'cxjax.training.target_cache.checks.parameter_digests',
      lambda _: cache.record['parameters'],
    )
    with digests, self.assertRaisesRegex(errors.UserError, 'teacher says of'):
      target_cache.check(cache, spec)
    target_cache.check(cache, self.spec)

  def test_a_teacher_without_a_head(self):
    apply = self.spec.teacher.apply

    def normalized(params, x):
      logits, activations = apply(params, x)
      return jax.nn.log_softmax(logits), activations

    spec = fixtures.with_teacher(self.spec, apply=normalized)
    with self.assertRaisesRegex(
      errors.UserError, 'has none: .* Use cache.output=logits'
    ):
      target_cache.require_hidden(spec)
    target_cache.require_hidden(self.spec)

  def test_a_curriculum_without_an_output(self):
    spec = dataclasses.replace(self.spec, stages=self.spec.stages[:1])
    with self.assertRaisesRegex(
      errors.UserError, 'and there is none: use cache.output=logits'
    ):
      target_cache.require_hidden(spec)
