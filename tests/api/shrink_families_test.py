"""Students cut out of a teacher of each family that folders hold."""

import pathlib

from absl.testing import parameterized
import jax
import numpy as np
import pytest

import cxjax
from cxjax.interop import huggingface
from cxjax.interop.huggingface import base
from cxjax.models import rotary

SIZES = dict(vocab_size=20, max_length=16, num_classes=20, width=16, heads=4)
SIZES |= dict(depth=3, mlp_width=24)
ROTARY = dict(SIZES, kv_heads=2, head_width=6)
BIASES = dict(qkv_bias=True, out_bias=True)
GEMMA = dict(norm='rms_offset', scaled_embeddings=True, post_norms=True)
GEMMA |= dict(activation='gelu_tanh', tied=True, windows=(4, 0, 4))
MODERN = dict(SIZES, causal=False, embeddings_norm=True, norm='layer')
MODERN |= dict(activation='gelu', kv_heads=4)
TOKENS = np.random.default_rng(0).integers(0, 20, (4, 12))


def decoder(**fields):
  return cxjax.Decoder(**{**ROTARY, **fields})


def encoder(**fields):
  return cxjax.Transformer(**{**SIZES, 'causal': False, **fields})


FAMILIES = {
  'gpt2': [encoder(causal=True, tied=True), encoder(causal=True)],
  'llama': [
    decoder(tied=True, rotary=rotary.Rotary(1e4, 'linear', factor=2.0)),
    decoder(**BIASES, mlp_bias=True),
  ],
  'mistral': [decoder(windows=(3,) * 3)],
  'qwen2': [decoder(qkv_bias=True, head_width=4, tied=True)],
  'qwen3': [decoder(qk_norm=True), decoder(qk_norm=True, **BIASES, tied=True)],
  'gemma2': [decoder(**GEMMA, score_cap=5.0, logit_cap=3.0)],
  'gemma3_text': [
    decoder(**GEMMA, qk_norm=True, local_rotary=rotary.Rotary(1e3))
  ],
  'bert': [encoder(tied=True), encoder()],
  'roberta': [encoder(tied=True, pad_token=1), encoder(pad_token=1)],
  'mpnet': [encoder(tied=True, pad_token=1, relative_buckets=32)],
  'modernbert': [
    cxjax.Decoder(**MODERN, tied=True),
    cxjax.Decoder(**MODERN, **BIASES, mlp_bias=True, windows=(0, 3, 3)),
  ],
}
CASES = [(name, module) for name, found in FAMILIES.items() for module in found]


def draw(module):
  """Random variables in which no norm is at its start."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
  random = np.random.default_rng(0)
  make = lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32)
  return jax.tree.map(make, shapes)


def rest(module, params):
  """Sets neurons, and a group of heads of a decoder, so that they add 0."""
  is_decoder = isinstance(module, cxjax.Decoder)
  for i, name in enumerate(module.layers):
    block = params[name]
    for leaf in block['mlp_gate' if is_decoder else 'mlp_in'].values():
      leaf[..., 3 * i : 3 * i + 6] = 0
    if is_decoder and module.causal:
      first = i % 2 * module.head_size
      for leaf in block['value'].values():
        leaf[..., first : first + module.head_size] = 0


def outputs(module, variables):
  return np.asarray(jax.jit(module.apply)(variables, {'tokens': TOKENS})[0])


class FamiliesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_nothing_removed_is_the_teacher(self, family, module):
    """Each size is given; the student is one of the family."""
    self.assertEqual(base.family_of(module).model_type, family)
    variables = draw(module)
    sizes = dict(depth=3, width=16, heads=4, mlp=24)
    if isinstance(module, cxjax.Decoder):
      sizes['kv_heads'] = module.kv_heads
    student, start, layers = cxjax.shrink(
      (module, variables), **sizes, batches=[TOKENS]
    )
    self.assertEqual(student, module)
    same = jax.tree.map(lambda a, b: a is b, start, variables)
    self.assertTrue(jax.tree.all(same))
    self.assertLen(layers, 3)

  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_what_adds_nothing_is_removed_and_the_output_stays(
    self, family, module
  ):
    """A block, neurons and, of a decoder, a group of heads; then a folder."""
    variables = draw(module)
    params = variables['params']
    sizes = dict(mlp=18, depth=3)
    rotary_kind = isinstance(module, cxjax.Decoder)
    rest(module, params)
    if rotary_kind and module.causal:
      sizes |= dict(kv_heads=1, heads=2)
    pre_norm = rotary_kind or module.causal
    if pre_norm:  # Another block than the first, which adds nothing.
      sizes |= dict(depth=2, choose='least_harm')
      last = [f'{name}_post_norm' for name in ('attention', 'mlp')]
      if not getattr(module, 'post_norms', False):
        last = ['attention_out', 'mlp_out']
      for name in last:
        for leaf in params['block1'][name].values():
          leaf[:] = -1.0 if 'post_norm' in name else 0.0
    student, start, layers = cxjax.shrink(
      (module, variables), batches=[TOKENS], **sizes
    )
    if pre_norm:
      self.assertEqual(layers, (('block0', 'block0'), ('block2', 'block1')))
    want = outputs(module, variables)
    np.testing.assert_allclose(outputs(student, start), want, atol=2e-4)
    folder = pathlib.Path(self.create_tempdir().full_path)
    huggingface.write(folder, student, start)
    back, read = huggingface.read(folder)
    self.assertEqual(base.family_of(back).model_type, family)
    np.testing.assert_allclose(outputs(back, read), want, atol=2e-4)

  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_channels_are_removed(self, family, module):
    """The student is one of the family, and its outputs are finite."""
    sizes = dict(width=12, mlp=7, depth=1)
    if not module.causal:  # The heads of these fill the width.
      sizes |= dict(heads=3)
    student, start, _ = cxjax.shrink(
      (module, draw(module)), batches=[TOKENS], **sizes
    )
    self.assertEqual((student.width, student.mlp_width), (12, 7))
    self.assertEqual(base.family_of(student).model_type, family)
    self.assertTrue(np.isfinite(outputs(student, start)).all())
