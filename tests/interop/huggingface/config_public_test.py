"""Fields of `config.json` in public folders, and of classes of transformers."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.interop.huggingface import config as config_lib
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models

PATH = pathlib.Path('config.json')
SIZES = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2)
SIZES |= dict(num_attention_heads=4, intermediate_size=24)
GPT2 = dict(vocab_size=32, n_positions=8, n_embd=16, n_head=4, n_layer=2)
ENCODER = {**SIZES, 'max_position_embeddings': 12}
DISTIL = dict(vocab_size=32, max_position_embeddings=8, dim=16, n_heads=4)
DISTIL |= dict(n_layers=2, hidden_dim=24)
REQUIRED = {kind: SIZES for kind in huggingface.FAMILIES}
REQUIRED |= dict(bert=ENCODER, roberta=ENCODER, mpnet=ENCODER, gpt2=GPT2)
REQUIRED |= {'xlm-roberta': ENCODER, 'distilbert': DISTIL}
ENCODERS = (
  'bert',
  'distilbert',
  'roberta',
  'xlm-roberta',
  'mpnet',
  'modernbert',
)
# Fields of all models that releases of transformers before 5 wrote out.
OLD = dict(
  return_dict=True,
  output_hidden_states=False,
  output_attentions=False,
  torchscript=False,
  torch_dtype='float32',
  use_bfloat16=False,
  tf_legacy_loss=False,
  pruned_heads={},
  chunk_size_feed_forward=0,
  is_encoder_decoder=False,
  cross_attention_hidden_size=None,
  add_cross_attention=False,
  tie_encoder_decoder=False,
  max_length=20,
  do_sample=False,
  early_stopping=False,
  num_beams=1,
  num_beam_groups=1,
  diversity_penalty=0.0,
  typical_p=1.0,
  encoder_no_repeat_ngram_size=0,
  bad_words_ids=None,
  output_scores=False,
  return_dict_in_generate=False,
  forced_bos_token_id=None,
  forced_eos_token_id=None,
  remove_invalid_values=False,
  exponential_decay_length_penalty=None,
  suppress_tokens=None,
  begin_suppress_tokens=None,
  prefix=None,
  task_specific_params=None,
  decoder_start_token_id=None,
)
LLAMA = dict(attention_bias=False, attention_dropout=0.0, mlp_bias=False)
LLAMA |= dict(pretraining_tp=1, rope_scaling=None, use_cache=True)
QWEN = dict(attention_dropout=0.0, use_cache=True, use_sliding_window=False)
QWEN |= dict(max_window_layers=28, sliding_window=None)
GEMMA = dict(attention_bias=False, cache_implementation='hybrid')
GEMMA |= dict(hidden_activation='gelu_pytorch_tanh', query_pre_attn_scalar=256)
BERT = dict(hidden_act='gelu', hidden_dropout_prob=0.1, type_vocab_size=2)
BERT |= dict(attention_probs_dropout_prob=0.1, classifier_dropout=None)
BERT |= dict(position_embedding_type='absolute', gradient_checkpointing=False)
# Names of public models, and fields of their config.json.
PUBLIC = (
  ('llama_3', 'llama', {**LLAMA, 'eos_token_id': [1, 2]}),
  ('smollm2', 'llama', dict(is_llama_config=True, rope_interleaved=False)),
  ('saved_by_unsloth', 'llama', dict(unsloth_version='2025.1.1')),
  ('qwen2_5', 'qwen2', {**QWEN, 'use_mrope': False}),
  ('qwen3', 'qwen3', {**QWEN, 'attention_bias': False, 'rope_scaling': None}),
  ('gemma_2', 'gemma2', {**GEMMA, 'hidden_act': 'gelu_pytorch_tanh'}),
  (
    'gemma_3',
    'gemma3_text',
    dict(
      **GEMMA,
      attn_logit_softcapping=None,
      final_logit_softcapping=None,
      rope_local_base_freq=10000,
      rope_scaling=None,
      sliding_window_pattern=6,
      use_bidirectional_attention=False,
      _sliding_window_pattern=6,
    ),
  ),
  ('mistral', 'mistral', dict(sliding_window=None, attention_dropout=0.0)),
  ('gpt_2', 'gpt2', dict(n_ctx=8, summary_activation=None)),
  ('bert', 'bert', BERT),
  (
    'tinybert',
    'bert',
    dict(cell={}, emb_size=312, pre_trained='', structure=[], training=''),
  ),
  ('distilbert', 'distilbert', dict(tie_weights_=True, pad_token_id=0)),
  ('roberta', 'roberta', BERT),
  ('xlm_roberta', 'xlm-roberta', {**BERT, 'output_past': True}),
  ('mpnet', 'mpnet', dict(relative_attention_num_buckets=32)),
  ('modernbert', 'modernbert', dict(norm_bias=False, sparse_prediction=False)),
)


def checked(kind, fields):
  """The checked config of a family with some fields."""
  config = {**REQUIRED[kind], 'model_type': kind, **fields}
  return config_lib.checked(PATH, huggingface.FAMILIES[kind], config)


class PublicTest(fixtures.TestCase):
  @parameterized.named_parameters(*PUBLIC)
  def test_fields_of_a_public_folder_are_read(self, kind, fields):
    checked(kind, fields)
    checked(kind, {**OLD, **fields})

  @pytest.mark.slow
  def test_every_field_of_a_class_is_read_at_its_default(self):
    with torch_models.libraries() as (_, transformers):
      for kind in huggingface.FAMILIES:
        config = transformers.AutoConfig.for_model(kind).to_dict()
        config_lib.checked(PATH, huggingface.FAMILIES[kind], config)

  @parameterized.parameters(*huggingface.FAMILIES)
  def test_the_other_direction_of_attention_is_refused(self, kind):
    causal = kind not in ENCODERS
    checked(kind, dict(is_causal=causal))
    for value in (not causal, None):
      at = f'is_causal={value}; only {causal} is supported'
      with self.assertRaisesRegex(errors.UserError, at):
        checked(kind, dict(is_causal=value))

  def test_a_window_that_is_false_is_one_of_modernbert(self):
    checked('modernbert', dict(sliding_window=None))
    at = 'sliding_window=False; only None is supported'
    with self.assertRaisesRegex(errors.UserError, at):
      checked('modernbert', dict(sliding_window=False))

  @parameterized.parameters(*huggingface.FAMILIES)
  def test_an_unknown_field_is_refused_at_any_value(self, kind):
    for value in (False, None, '', [], {}):
      with self.assertRaisesRegex(errors.UserError, 'normalize_embeddings='):
        checked(kind, dict(normalize_embeddings=value))


if __name__ == '__main__':
  absltest.main()
