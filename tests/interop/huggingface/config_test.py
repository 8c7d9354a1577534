"""Fields of `config.json` that change what a decoder computes."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.interop.huggingface import rope
from cxjax.models import decoder
from tests.interop.huggingface import fixtures

GONE = object()
YARN = dict(rope_type='yarn', factor=2.0)
ORIGINAL = 'original_max_position_embeddings'
MISTRAL = dict(model_type='mistral', architectures=['MistralForCausalLM'])
MISTRAL |= dict(attention_bias=None, mlp_bias=None)
QWEN = dict(model_type='qwen2', architectures=['Qwen2ForCausalLM'])
QWEN |= dict(attention_bias=None, mlp_bias=None)
SLIDING = dict(layer_types=['sliding_attention'] * 2, sliding_window=4)
# As in folders of the hub.
HARMLESS = dict(
  _name_or_path='x',
  eos_token_id=[1, 2],
  is_llama_config=True,
  pretraining_tp=1,
  rope_interleaved=False,
  torch_dtype='bfloat16',
  transformers_version='4.45.0',
)
HARMLESS['transformers.js_config'] = dict(dtype='q4')
REFUSED = (
  (dict(num_local_experts=8), 'num_local_experts=8, which llama'),
  (dict(use_rope=False), 'use_rope=False, which llama'),
  (dict(no_rope_layers=[]), 'no_rope_layers='),
  (dict(unknown=None), 'unknown=None, which llama'),
  (dict(is_causal=False), 'is_causal=False; only True is supported'),
  (dict(is_causal=None), 'is_causal=None; only True'),
  (dict(quantization_config=dict(bits=4)), r"quantization_config=\{'bits'"),
  (dict(auto_map={'AutoModel': 'x.py'}), 'auto_map='),
  (dict(sliding_window=4), 'sliding_window=4'),
  (dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5'),
  (dict(attention_bias=True), 'self_attn.q_proj.bias: none in the file'),
  (dict(attention_bias='yes'), 'must be true or false'),
  (dict(hidden_act='relu'), "hidden_act='relu'; only 'silu'"),
  (dict(hidden_act=['silu']), 'must be a string'),
  (dict(architectures=['OtherForCausalLM']), 'only LlamaForCausalLM'),
  (dict(architectures=[]), 'only LlamaForCausalLM'),
  (dict(rope_scaling=dict(rope_type='longrope')), "rope_type='longrope'"),
  (dict(rope_scaling=dict(type='dynamic', factor=2)), "rope_type='dynamic'"),
  (dict(rope_scaling=dict(type='linear')), 'no rope_scaling.factor'),
  (dict(rope_scaling=dict(type='linear', factor='x')), "factor='x' must be"),
  (dict(rope_scaling={**YARN, 'mrope_section': [2]}), 'mrope_section='),
  (dict(rope_scaling={**YARN, 'partial_rotary_factor': 0.5}), 'partial_rotary'),
  (dict(rope_scaling={**YARN, 'mscale': 'x'}), "mscale='x'"),
  (dict(rope_scaling={**YARN, ORIGINAL: 0}), 'original_length of at least 1'),
  (dict(rope_scaling={**YARN, ORIGINAL: False}), 'original_length=False'),
  (dict(rope_scaling=[1]), 'must be an object'),
  (dict(rope_theta=0), 'rope_theta=0; .* above 0'),
  (dict(rope_theta=np.inf), 'rope_theta=inf; .*finite'),
  (dict(rms_norm_eps=None), 'norm_eps=None must be'),
  (dict(num_key_value_heads=3), 'kv_heads=3 do not divide heads=4'),
  (dict(num_key_value_heads=10**12), 'at most 2147483647'),
  (dict(head_dim=5), 'it must be even'),
  (dict(num_hidden_layers=10**9), 'num_hidden_layers=1000000000'),
  (dict(vocab_size=10**9), 'vocab_size=1000000000'),
  ({**QWEN, **SLIDING, 'use_sliding_window': False}, 'use_sliding_window=Fals'),
  ({**QWEN, **SLIDING}, 'use_sliding_window=False and layer_types with'),
  ({**MISTRAL, 'layer_types': ['full_attention']}, 'layer_types='),
  (dict(model_type='llama4'), "model_type='llama4'; only .*'llama'"),
)


def small(**kwargs):
  """A decoder and random variables for it."""
  sizes = dict(vocab_size=fixtures.VOCAB, max_length=16, num_classes=30)
  sizes |= dict(width=16, heads=4, depth=2, mlp_width=24, kv_heads=2)
  return fixtures.randomized(decoder.Decoder(**{**sizes, **kwargs}))


class FieldTest(fixtures.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder_ = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    huggingface.write(cls.folder_, *small())
    cls.path = cls.folder_ / 'config.json'
    cls.config = json.loads(cls.path.read_text())

  def read(self, fields):
    self.path.write_text(json.dumps({**self.config, **fields}))
    return huggingface.read(self.folder_)

  @parameterized.parameters(*REFUSED)
  def test_what_changes_the_function_is_refused_by_its_name(self, fields, at):
    with self.assertRaisesRegex(errors.UserError, at) as caught:
      self.read(fields)
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn(str(self.folder_), str(caught.exception))

  def test_what_changes_nothing_is_read(self):
    want = self.read({})
    module, variables = self.read(HARMLESS)
    self.assertEqual(module, want[0])
    self.assert_same_tree(variables, want[1])

  def test_fields_of_encoders(self):
    folder = self.folder()
    made = fixtures.make(norm_eps=0.0)
    for kind in ('bert', 'distilbert'):
      huggingface.write(folder, *made, model_type=kind)
      path = folder / 'config.json'
      config = json.loads(path.read_text())
      old = dict(output_past=True, gradient_checkpointing=True, num_beams=1)
      old |= dict(pruned_heads={}, torchscript=False, finetuning_task='mnli')
      path.write_text(json.dumps({**config, **old}))
      huggingface.read(folder)
      for fields, at in (
        (dict(add_cross_attention=True), 'add_cross_attention=True, which'),
        (dict(pruned_heads={'0': [1]}), 'pruned_heads='),
        (dict(embedding_size=12), 'embedding_size=12'),
        (dict(auto_map={'AutoModel': 'x.py'}), 'auto_map='),
      ):
        path.write_text(json.dumps({**config, **fields}))
        with self.assertRaisesRegex(errors.UserError, at):
          huggingface.read(folder)

  def test_every_family_lists_its_fields(self):
    for name, family in huggingface.FAMILIES.items():
      self.assertIsNotNone(family.known, name)

  def test_an_object_of_positions_by_its_new_name(self):
    new = dict(rope_scaling=None, rope_theta=None)
    new |= dict(rope_parameters=dict(rope_type='default', rope_theta=77.0))
    self.assertEqual(self.read(new)[0].rotary.theta, 77)

  def test_a_null_of_yarn_is_false_as_in_transformers(self):
    config = dict(max_position_embeddings=8) | {ORIGINAL: None}
    read = lambda fields: rope.parse(config, 'rope_scaling', fields, 1e4)
    self.assertTrue(read(YARN).truncate)
    self.assertFalse(read({**YARN, 'truncate': False}).truncate)
    self.assertFalse(read({**YARN, 'truncate': None}).truncate)

  @pytest.mark.slow
  def test_models_without_a_window(self):
    folder = self.folder()
    path = folder / 'config.json'
    kwargs = dict(norm='rms_offset', post_norms=True, scaled_embeddings=True)
    for kind, qk_norm in (('gemma2', False), ('gemma3_text', True)):
      module = small(**kwargs, qk_norm=qk_norm, activation='gelu_tanh')
      huggingface.write(folder, *module, model_type=kind)
      config = json.loads(path.read_text())
      # transformers makes a mask of a window in any case.
      self.assertEqual(config['sliding_window'], 4096)
      self.assertEqual(huggingface.read(folder)[0].block_windows, (0, 0))

      config |= dict(query_pre_attn_scalar=2.5)
      path.write_text(json.dumps(config))
      fraction = huggingface.read(folder)
      self.assertEqual(fraction[0].scale_width, 2.5)
      with self.assertRaisesRegex(errors.UserError, 'scale_width=2.5 is not'):
        huggingface.write(folder, *fraction)

  def test_a_window_from_the_first_block_on(self):
    folder = self.folder()
    module = small(qkv_bias=True, windows=(3, 3))
    huggingface.write(folder, *module, model_type='qwen2')
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config |= dict(max_window_layers=0, layer_types=None)
    path.write_text(json.dumps(config))
    self.assertEqual(huggingface.read(folder)[0].windows, (3, 3))

  def test_padding_that_mpnet_does_not_have(self):
    made = fixtures.make(pad_token=2, relative_buckets=32)
    with self.assertRaisesRegex(errors.UserError, 'pad_token=2 is not written'):
      huggingface.write(self.folder(), *made, model_type='mpnet')

  @pytest.mark.slow
  def test_a_module_is_written_as_the_family_that_is_asked_for(self):
    module, variables = small()
    folder = self.folder()
    huggingface.write(folder, module, variables, model_type='mistral')
    found, there = huggingface.read(folder)
    self.assertEqual(found.family, 'mistral')
    self.assert_same_tree(there, variables)
    with self.assertRaisesRegex(errors.UserError, 'qkv_bias=False is not'):
      huggingface.write(folder, module, variables, model_type='qwen2')
    with self.assertRaisesRegex(errors.UserError, "Unknown model_type 'x'"):
      huggingface.write(folder, module, variables, model_type='x')
    odd, drawn = small(width=18, head_width=4)
    with self.assertRaisesRegex(errors.UserError, 'heads=4 do not divide'):
      huggingface.write(folder, odd, drawn, model_type='llama')
    huggingface.write(folder, odd, drawn)
    self.assertEqual(huggingface.read(folder)[0].family, '')
    capped = module.clone(logit_cap=3.0)
    with self.assertRaisesRegex(
      errors.UserError, 'As llama: logit_cap=3.0 is not written'
    ):
      huggingface.write(folder, capped, variables)


if __name__ == '__main__':
  absltest.main()
