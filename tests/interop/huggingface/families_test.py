"""Each family, read from and written for transformers: all outputs equal.

One module, since importing torch and transformers takes seconds.
"""

import dataclasses

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax.interop import huggingface
from cxjax.models import generate
from cxjax.models import transformer
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models

pytestmark = pytest.mark.slow
VOCAB, LENGTH, DEPTH = fixtures.VOCAB, fixtures.LENGTH, 2
SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40)
SIZES |= dict(num_hidden_layers=DEPTH, num_attention_heads=4)
SIZES |= dict(max_position_embeddings=16, pad_token_id=None)
GROUPED = dict(num_key_value_heads=2, head_dim=10)
LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0)
LLAMA3 |= dict(high_freq_factor=4.0, original_max_position_embeddings=8)
YARN = dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=8)
MSCALE = dict(mscale=0.7, mscale_all_dim=1.3, beta_fast=16, truncate=False)
WINDOW = dict(sliding_window=4)
KINDS = ['sliding_attention', 'full_attention']
LINEAR = dict(
  **WINDOW,
  layer_types=KINDS,
  rope_parameters=dict(
    full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e6),
    sliding_attention=dict(rope_type='linear', factor=2.0, rope_theta=1e3),
  ),
)
CAPS = dict(attn_logit_softcapping=3.0, final_logit_softcapping=2.0)
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_layer=DEPTH, n_head=4)
GPT2 |= dict(n_positions=16)
CAUSAL = 'AutoModelForCausalLM'


@dataclasses.dataclass(frozen=True)
class Case:
  """A model of transformers: the class of its config, and fields."""

  config: str
  fields: dict
  kind: str = CAUSAL


def decoder(name, kind=CAUSAL, **fields):
  return Case(name, {**SIZES, **GROUPED, **fields}, kind)


CASES = {
  'gpt2': Case('GPT2Config', GPT2),
  'gpt2, no head': Case('GPT2Config', {**GPT2, 'n_inner': 20}, 'AutoModel'),
  'llama2': Case('LlamaConfig', SIZES),
  'llama3': decoder('LlamaConfig', rope_scaling=LLAMA3),
  'llama, yarn': decoder('LlamaConfig', rope_scaling=YARN),
  'llama, mscale': decoder('LlamaConfig', rope_scaling={**YARN, **MSCALE}),
  'llama, biases': decoder('LlamaConfig', attention_bias=True, mlp_bias=True),
  'llama, no head': Case('LlamaConfig', SIZES, 'AutoModel'),
  'smollm2': decoder('LlamaConfig', tie_word_embeddings=True, rope_theta=1e5),
  'mistral': decoder('MistralConfig', **WINDOW),
  'qwen2.5': Case('Qwen2Config', {**SIZES, 'num_key_value_heads': 1}),
  'qwen2, windows': decoder(
    'Qwen2Config', **WINDOW, use_sliding_window=True, max_window_layers=1
  ),
  'qwen2.5, yarn': decoder('Qwen2Config', rope_scaling=YARN),
  'qwen3': decoder('Qwen3Config', tie_word_embeddings=True),
  'qwen3, windows, yarn': decoder(
    'Qwen3Config',
    **WINDOW,
    use_sliding_window=True,
    max_window_layers=1,
    attention_bias=True,
    rope_scaling=YARN,
  ),
  'gemma2': decoder('Gemma2Config', **WINDOW, **CAPS),
  'gemma3': decoder(
    'Gemma3TextConfig', **WINDOW, layer_types=KINDS, query_pre_attn_scalar=7
  ),
  'gemma3, linear': decoder('Gemma3TextConfig', **LINEAR),
  'gemma3, linear, no head': decoder(
    'Gemma3TextConfig', kind='AutoModel', **LINEAR
  ),
}

LM, BARE = 'AutoModelForMaskedLM', 'AutoModel'
PAD = {**SIZES, 'pad_token_id': 1, 'layer_norm_eps': 1e-3}
DISTIL = dict(vocab_size=VOCAB, dim=32, n_layers=DEPTH, n_heads=4)
DISTIL |= dict(hidden_dim=40, max_position_embeddings=16)
MODERN = {**SIZES, 'local_attention': 6, 'cls_token_id': None}
MODERN |= dict(bos_token_id=None, eos_token_id=None, sep_token_id=None)
CASES |= {
  'bert': Case('BertConfig', SIZES, LM),
  'bert, untied': Case(
    'BertConfig', {**SIZES, 'tie_word_embeddings': False}, LM
  ),
  'bert, no head': Case('BertConfig', SIZES, BARE),
  'distilbert': Case('DistilBertConfig', DISTIL, LM),
  'distilbert, no head': Case('DistilBertConfig', DISTIL, BARE),
  'roberta': Case('RobertaConfig', PAD, LM),
  'roberta, untied': Case(
    'RobertaConfig', {**PAD, 'tie_word_embeddings': False}, LM
  ),
  'roberta, no head': Case('RobertaConfig', PAD, BARE),
  'xlm-roberta': Case('XLMRobertaConfig', {**PAD, 'type_vocab_size': 1}, LM),
  # transformers begins positions after 1 all the same.
  'mpnet': Case('MPNetConfig', {**PAD, 'pad_token_id': 2}, LM),
  'mpnet, no head': Case('MPNetConfig', PAD, BARE),
  'modernbert': Case('ModernBertConfig', MODERN, LM),
  'modernbert, biases': Case(
    'ModernBertConfig', {**MODERN, 'attention_bias': True, 'mlp_bias': True}, LM
  ),
  'modernbert, no head': Case('ModernBertConfig', MODERN, BARE),
}


def build(case):
  """A model with random weights, all of them felt in the outputs."""
  with torch_models.libraries() as (torch, transformers):
    torch.manual_seed(0)
    config = getattr(transformers, case.config)(**case.fields)
    model = getattr(transformers, case.kind).from_config(
      config, attn_implementation='eager'
    )
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn_like(parameter))
      if parameter.ndim == 1:
        parameter.add_(0.5)
    # With a cache of keys, transformers does not see where segments begin.
    model.config.use_cache = False
    return model.eval()


def run(model, **inputs):
  """The hidden states and the output of a model of transformers."""
  with torch_models.libraries() as (torch, _):
    inputs = jax.tree.map(torch.as_tensor, inputs)
    out = model(
      torch.as_tensor(fixtures.TOKENS), output_hidden_states=True, **inputs
    )
  output = out['logits' if 'logits' in out else 'last_hidden_state']
  return [h.numpy() for h in out.hidden_states], output.numpy()


EVERY = np.ones_like(fixtures.REAL)
SEGMENTS = np.array([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3, [0] * 12])
POSITIONS = np.array(
  [[*range(5), *range(7)], [*range(9), *range(3)], [*range(12)]]
)


def packing(module):
  """Inputs of transformers of which each token sees its own segment."""
  positions = POSITIONS + getattr(module, 'pad_token', -1) + 1
  if module.causal:
    return dict(position_ids=positions)
  same = SEGMENTS[:, :, None] == SEGMENTS[:, None]
  places = np.arange(LENGTH)
  near = np.abs(places[:, None] - places) < max(
    getattr(module, 'windows', (9,))
  )
  full, local = (
    np.where(seen, 0, -1e9)[:, None].astype(np.float32)
    for seen in (same, same & near)
  )
  kinds = dict(full_attention=full, sliding_attention=local)
  mask = kinds if hasattr(module, 'windows') else full
  return dict(position_ids=positions, attention_mask=mask)


class FamilyTest(fixtures.TestCase):
  def assert_close(self, got, want, real):
    (hidden, output), (their_hidden, their_output) = got, want
    for ours, theirs in zip(
      [*hidden, output], [*their_hidden, their_output], strict=True
    ):
      ours, theirs = np.asarray(ours)[real], theirs[real]
      np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)

  @parameterized.named_parameters((k, v) for k, v in CASES.items())
  def test_is_read_and_written(self, case):
    model, folder = build(case), self.folder()
    torch_models.save(model, folder / 'theirs')
    module, variables = huggingface.read(folder / 'theirs')
    apply = jax.jit(module.apply)
    # Where there is a last norm, it is in the last hidden state.
    post = isinstance(module, transformer.Transformer) and not module.causal
    last = module.layers[-1] if post else 'head_input'
    names = ['embeddings', *module.layers[:-1], last]

    def ours(mask=EVERY, segments=EVERY, **positions):
      x = dict(tokens=fixtures.TOKENS, mask=mask, segments=segments * 1)
      output, activations = apply(variables, {**x, **positions})
      return [activations[name] for name in names], output

    right, left = fixtures.REAL, fixtures.REAL[:, ::-1]
    want = run(model, attention_mask=right * 1)
    self.assert_close(ours(right), want, right)
    self.assert_close(ours(left), run(model, attention_mask=left * 1), left)
    packed = ours(EVERY, SEGMENTS, position_ids=POSITIONS)
    self.assert_close(packed, run(model, **packing(module)), EVERY)
    huggingface.write(folder / 'ours', module, variables)
    again = torch_models.load(case.kind, folder / 'ours')
    self.assertEqual(type(again), type(model))
    output = run(again, attention_mask=right * 1)[1]
    # Exactly, but for the sum of positions and sentence types.
    np.testing.assert_allclose(output[right], want[1][right], atol=1e-5, rtol=0)
    back, same = huggingface.read(folder / 'ours')
    self.assertEqual(back, module)
    self.assert_same_tree(same, variables)

  def test_a_sentence_encoder_names_a_class_with_a_head(self):
    folder = self.folder()
    torch_models.save(build(CASES['mpnet, no head']), folder)
    want = huggingface.read(folder)
    path = folder / 'config.json'
    path.write_text(path.read_text().replace('MPNetModel', 'MPNetForMaskedLM'))
    module, variables = huggingface.read(folder)
    self.assertEqual(module, want[0])
    self.assert_same_tree(variables, want[1])

  @parameterized.named_parameters(
    (k, v) for k, v in CASES.items() if v.kind == CAUSAL
  )
  def test_generates_the_same_tokens(self, case):
    model, folder = build(case), self.folder()
    with torch_models.libraries():
      # Otherwise a tied head repeats the last token, whatever came before it.
      model.get_input_embeddings().weight.mul_(0.1)
    torch_models.save(model, folder)
    # A prompt of each length, padded on the left.
    shape = (LENGTH, LENGTH)
    tokens = np.random.default_rng(1).integers(0, VOCAB, shape)
    mask = np.tri(LENGTH, dtype=bool)[:, ::-1].copy()
    with torch_models.libraries() as (torch, _):
      want = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask * 1),
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
      )
    found = generate.generate(*huggingface.read(folder), tokens, 4, mask=mask)
    np.testing.assert_array_equal(found, want[:, LENGTH:].numpy())
