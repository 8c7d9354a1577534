"""The transformer against an implementation that nobody here wrote."""

import warnings

from absl.testing import parameterized
import jax
import numpy as np

from cxjax import errors
from cxjax import huggingface
from cxjax.models import transformer

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import torch
  import transformers

VOCAB, LENGTH, WIDTH, HEADS, DEPTH = 30, 12, 32, 4, 3
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, LENGTH))
LENGTHS = np.array([LENGTH, 7, 2])
REAL = np.arange(LENGTH)[None] < LENGTHS[:, None]


def reference(name):
  """Their model with random weights, what it gives, and its tensors."""
  torch.manual_seed(0)
  if name == 'bert':
    model = transformers.BertForMaskedLM(
      transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=LENGTH + 2,
        attn_implementation='eager',
      )
    )
  else:
    model = transformers.GPT2LMHeadModel(
      transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        n_positions=LENGTH + 2,
        tie_word_embeddings=False,
        attn_implementation='eager',
      )
    )
  # Away from where they start: norms of 1 and biases of 0 could be left out.
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn_like(parameter))
      if parameter.ndim == 1:
        parameter.add_(0.5)
  model.eval()
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    out = model(
      input_ids=torch.tensor(TOKENS),
      attention_mask=torch.tensor(REAL.astype(int)),
      output_hidden_states=True,
    )
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  return out.logits.numpy(), [h.numpy() for h in out.hidden_states], tensors


class HuggingFaceTest(parameterized.TestCase):
  @parameterized.parameters(
    ('bert', huggingface.from_bert), ('gpt2', huggingface.from_gpt2)
  )
  def test_every_hidden_state_and_the_logits_are_theirs(self, name, convert):
    want, hidden, tensors = reference(name)
    model = transformer.Transformer(
      vocab_size=VOCAB,
      max_length=LENGTH + 2,
      num_classes=VOCAB,
      width=WIDTH,
      heads=HEADS,
      depth=DEPTH,
      causal=name == 'gpt2',
    )
    params = convert(tensors, DEPTH)
    x = {'tokens': TOKENS, 'mask': REAL}
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    self.assertEqual(
      jax.tree.map(np.shape, shapes), jax.tree.map(np.shape, params)
    )
    logits, activations = jax.jit(model.apply)(params, x)
    names = ['embeddings', *model.layers]
    if name == 'gpt2':
      names[-1] = 'final'  # Theirs is after the last norm.
    self.assertLen(hidden, len(names))
    for at, theirs in zip(names, hidden, strict=True):
      # What a padded position computes is nobody's business.
      np.testing.assert_allclose(
        activations[at][REAL],
        theirs[REAL],
        atol=1e-5 * np.abs(theirs[REAL]).max(),
        err_msg=at,
      )
    np.testing.assert_allclose(
      logits[REAL], want[REAL], atol=1e-5 * np.abs(want[REAL]).max()
    )

  def test_a_missing_tensor_is_named(self):
    _, _, tensors = reference('gpt2')
    del tensors['transformer.ln_f.bias']
    with self.assertRaisesRegex(errors.UserError, 'transformer.ln_f.bias'):
      huggingface.from_gpt2(tensors, DEPTH)
