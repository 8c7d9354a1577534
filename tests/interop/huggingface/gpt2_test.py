"""GPT-2's tensors as variables, compared with transformers."""

import jax
import pytest

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.models import transformer
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models

DEPTH = torch_models.DEPTH
pytestmark = pytest.mark.slow


class Gpt2Test(fixtures.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = torch_models.build('GPT2LMHeadModel')
    cls.tensors = torch_models.state(cls.model)

  def test_every_hidden_state_and_the_logits_are_equal(self):
    module = transformer.Transformer(
      vocab_size=fixtures.VOCAB,
      max_length=fixtures.LENGTH + 2,
      num_classes=fixtures.VOCAB,
      width=fixtures.WIDTH,
      heads=fixtures.HEADS,
      depth=DEPTH,
      causal=True,
    )
    variables = huggingface.from_gpt2(self.tensors, DEPTH)
    self.assert_same_shapes(fixtures.shapes_of(module), variables)
    logits, activations = jax.jit(module.apply)(variables, fixtures.X)
    want = torch_models.run(self.model)
    # The last hidden state of transformers is after the final norm.
    names = ['embeddings', *module.layers[:-1], 'head_input']
    for name, theirs in zip(names, want.hidden, strict=True):
      fixtures.assert_real_close(activations[name], theirs, name)
    fixtures.assert_real_close(logits, want.output)

  def test_a_missing_tensor_is_named(self):
    tensors = dict(self.tensors)
    del tensors['transformer.ln_f.bias']
    with self.assertRaisesRegex(errors.UserError, 'transformer.ln_f.bias'):
      huggingface.from_gpt2(tensors, DEPTH)
