"""Students cut out of their teachers: what is kept, harm, and bad sizes."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.api import shrink
from cxjax.models import master_weights
from cxjax.models import mlp
from cxjax.models import sentence
from cxjax.models import slicing

SIZES = dict(vocab_size=20, max_length=16, num_classes=20, width=16, heads=4)
SIZES |= dict(depth=2)
DECODER = dict(SIZES, mlp_width=24, kv_heads=2)
GEMMA = dict(norm='rms_offset', scaled_embeddings=True, post_norms=True)
TOKENS = np.random.default_rng(0).integers(0, 20, (4, 12))
BATCHES = [{'tokens': TOKENS[:2]}, {'tokens': TOKENS[2:, :7]}]


def draw(module):
  """Random variables in which no norm is at its start."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
  random = np.random.default_rng(0)
  make = lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32)
  return jax.tree.map(make, shapes)


def outputs(module, variables, x=TOKENS):
  return np.asarray(jax.jit(module.apply)(variables, x)[0])


def train(module, steps=150):
  """Variables that know how the rows of `walks` go on."""

  def step(carry, seed):
    variables, state = carry
    grads = jax.grad(lambda v: loss(module, v, walks(seed)))(variables)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(variables, updates), state), None

  tx = optax.adam(1e-2)
  variables = jax.jit(module.init)(jax.random.key(0), TOKENS)
  start = variables, tx.init(variables)
  run = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps))[0])
  return jax.device_get(run(start)[0])


def walks(seed):
  """`[16, 12]` ids; each follows from the two before, mostly."""
  key = jax.random.key(seed)
  first = jax.random.randint(key, (2, 16), 0, 20)
  noise = jax.random.bernoulli(key, 0.1, (10, 16))
  follow = lambda pair, off: (
    ((pair[1], (3 * pair[1] + pair[0] % 3 + off) % 20),) * 2
  )
  _, rows = jax.lax.scan(
    lambda pair, off: (follow(pair, off)[0], follow(pair, off)[0][1]),
    (first[0], first[1]),
    noise,
  )
  return jnp.concatenate([first, rows]).T


def loss(module, variables, tokens):
  logits, _ = module.apply(variables, tokens)
  each = optax.softmax_cross_entropy_with_integer_labels
  return jnp.mean(each(logits[:, 1:-1], tokens[:, 2:]))


class SlicesTest(parameterized.TestCase):
  @parameterized.parameters(
    cxjax.Decoder(**DECODER, windows=(3, 0), tied=True),
    cxjax.Decoder(**DECODER, causal=False, embeddings_norm=True),
    cxjax.Transformer(**SIZES, causal=True),
    cxjax.Transformer(**SIZES, causal=False, tied=True, relative_buckets=8),
  )
  def test_nothing_removed_is_the_teacher(self, module):
    variables = draw(module)
    student, start, layers = cxjax.shrink(
      (module, variables), depth=2, width=16, mlp=module.mlp_width or 64
    )
    self.assertEqual(student, module)
    same = jax.tree.map(lambda a, b: a is b, start, variables)
    self.assertTrue(jax.tree.all(same))
    self.assertEqual(layers, (('block0',) * 2, ('block1',) * 2))

  @pytest.mark.slow
  def test_what_adds_nothing_is_removed_and_the_output_stays(self):
    biases = dict(qkv_bias=True, out_bias=True, mlp_bias=True)
    kinds = dict(GEMMA, tied=True, qk_norm=True, **biases)
    module = cxjax.Decoder(**DECODER, **kinds)
    variables = draw(module)
    params = variables['params']
    dead = [2, 3, 11]  # Channels that are always 0.
    params['tokens']['embedding'][:, dead] = 0
    for i, name in enumerate(module.layers):
      block = params[name]
      for part in ('attention_out', 'mlp_out'):
        for leaf in block[part].values():
          leaf[..., dead] = 0
      for leaf in block['mlp_gate'].values():  # Neurons 3 i to 3 i + 5.
        leaf[..., 3 * i : 3 * i + 6] = 0
      for leaf in block['value'].values():  # One of two groups of heads.
        leaf[..., 4 * (i % 2) : 4 * (i % 2) + 4] = 0
    student, start, _ = cxjax.shrink(
      (module, variables), batches=BATCHES, width=13, heads=2, mlp=18
    )
    sizes = student.width, student.heads, student.kv_heads, student.mlp_width
    self.assertEqual(sizes, (13, 2, 1, 18))
    shapes = jax.eval_shape(student.init, jax.random.key(0), TOKENS)
    self.assertEqual(*(jax.tree.map(np.shape, t) for t in (start, shapes)))
    want = outputs(module, variables)
    np.testing.assert_allclose(outputs(student, start), want, atol=2e-4)

  @pytest.mark.slow
  def test_neurons_of_a_transformer(self):
    module = cxjax.Transformer(**SIZES, causal=False, tied=True)
    variables = draw(module)
    for i, name in enumerate(module.layers):
      for leaf in variables['params'][name]['mlp_in'].values():
        leaf[..., i % 2 :: 2] = 0
    teacher = module, variables
    student, start, _ = cxjax.shrink(teacher, batches=[TOKENS], mlp=32)
    want = outputs(module, variables)
    np.testing.assert_allclose(outputs(student, start), want, atol=1e-4)
    student, start, _ = cxjax.shrink(teacher, batches=[TOKENS], width=8)
    self.assertEqual((student.heads, student.mlp_width), (2, 64))
    self.assertEqual(outputs(student, start).shape, (4, 12, 20))

  @pytest.mark.slow
  def test_padding_does_not_count_and_dtypes_stay(self):
    module = cxjax.Decoder(**DECODER, dtype=jnp.bfloat16)
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(module))
    mask = np.arange(12) < np.array([[3], [12], [7], [1]])
    first = dict(tokens=TOKENS, mask=mask)
    second = dict(tokens=np.where(mask, TOKENS, 19), mask=mask)
    starts = [
      cxjax.shrink((module, variables), batches=[x], width=8, heads=1)[1]
      for x in (first, second)
    ]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *starts)
    self.assertTrue(jax.tree.all(same))
    self.assertEqual(
      {x.dtype for x in jax.tree.leaves(starts)}, {jnp.dtype(jnp.bfloat16)}
    )

  @pytest.mark.slow
  def test_a_float16_teacher_gives_a_start_that_distill_trains(self):
    module = cxjax.Decoder(**DECODER)
    half = jax.tree.map(lambda x: x.astype(jnp.float16), draw(module))
    for how in (dict(), dict(width=8, batches=[TOKENS])):
      student, start, _ = cxjax.shrink((module, half), **how)
      self.assertEqual(
        {x.dtype for x in jax.tree.leaves(start)}, {jnp.dtype(jnp.float32)}
      )
    network = cxjax.from_fn(student.apply, start)
    self.assertIs(master_weights.with_master_weights(network), network)

  @parameterized.parameters((0, 8, 2, 0), (0, 8, 4, 4), (4, 8, 2, 4))
  def test_the_width_of_a_head_is_named_if_it_must_be(
    self, before, width, heads, after
  ):
    module = cxjax.Decoder(**DECODER, head_width=before)
    want = slicing.Sizes(2, width, heads, heads // 2, 24, 4)
    scores = {f'block{i}/attention_out': np.arange(16.0) for i in range(2)}
    kept = slicing.choose(
      module, range(2), want, {**scores, 'final_norm': np.arange(16.0)}
    )
    student = slicing.smaller(module, kept)
    self.assertEqual((student.head_width, student.head_size), (after, 4))
    self.assertEqual(student.kv_heads, heads // 2)

  def test_one_choice_of_heads_where_they_share_biases_of_positions(self):
    module = cxjax.Transformer(**SIZES, causal=False, relative_buckets=8)
    want = slicing.Sizes(2, 8, 2, 2, 64, 4)
    scores = {'block0/attention_out': np.arange(16.0)}
    scores['block1/attention_out'] = np.array([99.0] * 4 + [0] * 12)
    scores['final_norm'] = np.arange(16.0)
    kept = slicing.choose(module, range(2), want, scores)
    self.assertEqual([list(each) for each in kept.heads], [[0, 3]] * 2)
    self.assertEqual(list(kept.width), list(range(8, 16)))


class BlocksTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    sizes = {**DECODER, 'depth': 3}
    cls.module = cxjax.Decoder(**sizes, windows=(0, 4, 0))
    cls.teacher = cls.module, draw(cls.module)

  @parameterized.parameters(
    (dict(depth=2), (0, 2)),
    (dict(depth=1), (0,)),
    (dict(choose=(1, 2)), (1, 2)),
    (dict(depth=1, choose=np.array([1])), (1,)),
  )
  def test_even_and_given(self, kwargs, want):
    student, start, layers = cxjax.shrink(self.teacher, **kwargs)
    self.assertEqual(
      layers, tuple((f'block{i}', f'block{at}') for at, i in enumerate(want))
    )
    self.assertEqual(student.windows, tuple((0, 4, 0)[i] for i in want))
    params = self.teacher[1]['params']
    self.assertIs(
      start['params']['block0']['query']['kernel'],
      params[f'block{want[0]}']['query']['kernel'],
    )

  @parameterized.parameters(20, 0)
  @pytest.mark.slow
  def test_the_blocks_that_do_nothing_are_removed(self, classes):
    module = self.module.clone(num_classes=classes, windows=())
    variables = draw(module)
    for block in ('block0', 'block2'):
      for part in ('attention_out', 'mlp_out'):
        variables['params'][block][part]['kernel'][:] = 0
    student, start, layers = cxjax.shrink(
      (module, variables), depth=1, batches=BATCHES, choose='least_harm'
    )
    self.assertEqual(layers, (('block1', 'block0'),))
    np.testing.assert_allclose(
      outputs(student, start), outputs(module, variables), atol=1e-5
    )


class StartTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.module = cxjax.Decoder(**{**DECODER, 'width': 32}, tied=True)
    cls.variables = train(cls.module)
    cls.batches = [np.asarray(walks(i)) for i in (1000, 1001)]

  @pytest.mark.slow
  def test_the_start_is_better_than_a_random_one_and_without_scaled_norms(self):
    module, test = self.module, walks(1002)
    student, start, _ = cxjax.shrink(
      (module, self.variables), batches=self.batches, width=24, mlp=18
    )
    with mock.patch.object(slicing, 'rescaled', lambda m, params, *_: params):
      _, plain, _ = cxjax.shrink(
        (module, self.variables), batches=self.batches, width=24, mlp=18
      )
    random = jax.jit(student.init)(jax.random.key(1), TOKENS)
    score = jax.jit(lambda variables: loss(student, variables, test))
    teacher = jax.jit(lambda variables: loss(module, variables, test))
    self.assertLess(teacher(self.variables), 1.5)
    self.assertLess(score(start), score(plain))
    self.assertLess(score(plain), score(random) - 0.5)

  @pytest.mark.slow
  def test_the_pairs_of_layers_make_a_plan_that_trains(self):
    student, start, layers = cxjax.shrink(
      (self.module, self.variables), batches=self.batches, depth=1, mlp=18
    )
    plan = cxjax.plan(
      cxjax.from_fn(self.module.apply, self.variables),
      cxjax.from_fn(student.apply, start),
      self.batches[0],
      num_steps=6,
      layers=layers,
    )
    self.assertEqual([stage.steps for stage in plan.stages], [2, 4])
    params, history = cxjax.distill(plan, self.batches, log_every=6)
    self.assertEqual(history[-1]['step'], 6)
    self.assertLess(loss(student, params, TOKENS), loss(student, start, TOKENS))


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(depth=4), 'depth=4: the teacher has 2'),
    (dict(width=32), 'width=32: the teacher has 16'),
    (dict(heads=8), 'heads=8: the teacher has 4'),
    (dict(mlp=25), 'mlp=25: the teacher has 24'),
    (dict(depth=0), 'depth=0 must be a whole number'),
    (dict(width=1.5), 'width=1.5 must be a whole number'),
    (dict(heads=True), 'heads=True must be a whole number'),
    (dict(heads=3), 'Give one of 1, 2, 4'),
    (dict(kv_heads=1), 'heads=4 and kv_heads=1 do not fit.* most 2 heads'),
    (dict(heads=2, kv_heads=4), 'kv_heads=4: the teacher has 2'),
    (dict(width=8, batches=None), 'batches are missing'),
    (dict(depth=1, choose='least_harm', batches=None), 'batches are missing'),
    (dict(batches=[]), 'batches are empty'),
    (dict(batches={'tokens': TOKENS}), 'batches is a dict'),
    (dict(batches=3), 'batches is a int'),
    (dict(batches=[{'ids': TOKENS}]), "no 'tokens' among 'ids'"),
    (dict(batches=[TOKENS[0]]), r"'tokens' are int64\[12\]"),
    (dict(batches=[TOKENS / 2]), 'must be .B, L. integers'),
    (dict(batches=[TOKENS + 1]), 'the teacher has the ids 0 to 19'),
    (dict(batches=[np.zeros((2, 17), int)]), 'longer than the 16 positions'),
    (dict(batches=[dict(tokens=TOKENS, mask=TOKENS[0])]), "'mask' is .12."),
    (dict(batches=[dict(tokens=TOKENS, mask=TOKENS < 0)]), 'No token counts'),
    (dict(choose='worst'), "Unknown choose 'worst'"),
    (dict(choose=(1, 0)), 'must be numbers of blocks that ascend'),
    (dict(choose=()), 'must be numbers of blocks that ascend'),
    (dict(choose=(0, 3)), 'numbers of blocks from 0 to 1'),
    (dict(choose=5), 'numbers of blocks from 0 to 1'),
    (dict(choose=(0, 1), depth=1), 'which are 2 blocks'),
  )
  def test_decoder(self, kwargs, message):
    module = cxjax.Decoder(**DECODER)
    kwargs = {'batches': BATCHES, **kwargs}
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.shrink((module, draw(module)), **kwargs)

  def test_what_no_folder_can_hold_is_refused_where_it_is_cut(self):
    gemma = cxjax.Decoder(**DECODER, **GEMMA, activation='gelu_tanh', tied=True)
    gemma = gemma.clone(scale_width=4.0, windows=(8, 0), logit_cap=30.0)
    teacher = gemma, draw(gemma)
    with self.assertRaisesRegex(
      errors.UserError, 'of a gemma2 holds.*heads=4 do not divide width=10'
    ):
      cxjax.shrink(teacher, batches=BATCHES, width=10)
    llama = cxjax.Decoder(**DECODER)  # Such a Llama is written as a Mistral.
    self.assertEqual(shrink.outline(llama, width=10)[0].head_width, 4)
    free = llama.clone(qkv_bias=True, mlp_bias=True)  # Of no folder either.
    self.assertEqual(shrink.outline(free, width=10)[0].head_width, 4)

  def test_heads_of_a_transformer(self):
    module = cxjax.Transformer(**SIZES, causal=True)
    teacher = module, draw(module)
    for kwargs, message in (
      (dict(width=10), 'Give 8'),
      (dict(width=8, heads=4), 'give width=16, or heads=2'),
      (dict(heads=2), 'give width=8, or heads=4'),
      (dict(width=8, kv_heads=1), 'Leave kv_heads out'),
    ):
      with self.assertRaisesRegex(errors.UserError, message):
        cxjax.shrink(teacher, batches=BATCHES, **kwargs)

  @pytest.mark.slow
  def test_teachers(self):
    module = cxjax.Transformer(**SIZES, causal=True)
    variables = draw(module)
    headless = cxjax.Transformer(**{**SIZES, 'num_classes': 0}, causal=False)
    modern = cxjax.Decoder(**DECODER, causal=False, embeddings_norm=True)
    for teacher, message in (
      (module, 'teacher is a Transformer; it must be a pair'),
      ((mlp.MLP((8,), 2), {'params': {}}), 'this is a MLP'),
      ((sentence.SentenceEncoder(headless), {}), 'give .module.encoder'),
      ((module, variables['params']), "must be its {'params'"),
      ((module.clone(width=8), variables), 'do not fit the teacher'),
      ((module, jax.eval_shape(lambda: variables)), 'has a shape and no val'),
    ):
      with self.assertRaisesRegex(errors.UserError, message):
        cxjax.shrink(teacher, depth=1)
    with self.assertRaisesRegex(errors.UserError, 'must begin with block 0'):
      cxjax.shrink((modern, draw(modern)), choose=(1,))
    variables['params']['block1']['mlp_out']['kernel'][:] = np.nan
    for kwargs in (dict(mlp=8), dict(depth=1, choose='least_harm')):
      with self.assertRaisesRegex(errors.UserError, 'not finite'):
        cxjax.shrink((module, variables), batches=BATCHES, **kwargs)


if __name__ == '__main__':
  absltest.main()
