"""Models of transformers: an implementation that this project did not write.

Importing torch and transformers takes seconds, so that only the functions do.
"""

import contextlib
import dataclasses
import warnings

import numpy as np

from tests.interop.huggingface import fixtures

DEPTH = 3


@contextlib.contextmanager
def libraries():
  """Torch and transformers, without warnings and gradients."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import torch
    import transformers

    with torch.no_grad():
      yield torch, transformers


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Arrays that a model computes.

  Attributes:
    output: logits, or the last hidden state without a head.
    hidden: the embeddings and the output of each block.
  """

  output: np.ndarray
  hidden: list[np.ndarray]


def build(kind, **kwargs):
  """A model of a class of transformers, with random weights."""
  with libraries() as (torch, transformers):
    torch.manual_seed(0)
    sizes = dict(vocab_size=fixtures.VOCAB, attn_implementation='eager')
    width, heads = fixtures.WIDTH, fixtures.HEADS
    length = fixtures.LENGTH + 2
    if kind == 'GPT2LMHeadModel':
      sizes |= dict(n_embd=width, n_layer=DEPTH, n_head=heads)
      sizes |= dict(n_positions=length, tie_word_embeddings=False)
      config = transformers.GPT2Config(**sizes, **kwargs)
    else:
      sizes |= dict(hidden_size=width, num_hidden_layers=DEPTH)
      sizes |= dict(num_attention_heads=heads, intermediate_size=4 * width)
      sizes |= dict(max_position_embeddings=length)
      config = transformers.BertConfig(**{**sizes, **kwargs})
    model = getattr(transformers, kind)(config)
    # Norms of 1 and biases of 0, as at the start, could be left out unnoticed.
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn_like(parameter))
      if parameter.ndim == 1:
        parameter.add_(0.5)
    return model.eval()


def run(model, **kwargs):
  """The outputs of a model for the tokens of `fixtures`."""
  with libraries() as (torch, _):
    out = model(
      input_ids=torch.tensor(fixtures.TOKENS),
      attention_mask=torch.tensor(fixtures.REAL.astype(int)),
      output_hidden_states=True,
      **{name: torch.tensor(value) for name, value in kwargs.items()},
    )
  for name in ('prediction_logits', 'logits', 'last_hidden_state'):
    if name in out:
      return Outputs(out[name].numpy(), [h.numpy() for h in out.hidden_states])
  raise AssertionError(f'None of the outputs is known: {list(out)}.')


def state(model):
  """The tensors of a model, by name, in float32."""
  return {k: v.float().numpy() for k, v in model.state_dict().items()}


def save(model, folder, **kwargs):
  """Writes a model as transformers does; returns the folder."""
  with libraries():
    model.save_pretrained(folder, **kwargs)
  return folder


def load(kind, folder):
  """A model of a folder; fails if a parameter is missing or left over."""
  with libraries() as (_, transformers):
    model, info = getattr(transformers, kind).from_pretrained(
      folder, output_loading_info=True, attn_implementation='eager'
    )
  assert not any(info.values()), info
  return model.eval()


def tokenizer(kind, folder):
  """A tokenizer of a folder."""
  with libraries() as (_, transformers):
    return getattr(transformers, kind).from_pretrained(folder)
