"""Next-token prediction on packed text, for decoders.

Every token of a document is predicted from those before it: the first one from
the token that begins the chunk, the last one is the token that ends the
document. Where records have prompts, only completions are predicted.

Bits per byte compare models of different tokenizers. They are the bits of all
predicted tokens over the bytes of the text that these tokens stand for. A
token's bytes are those of UTF-8 between its end and that of the token before
it, by the tokenizer's offsets in the text, so that the bytes of a document's
tokens add up to its size exactly, whatever the tokenizer drops or rewrites. The
token that ends a document has bits and no bytes. Both sums are taken over the
whole held-out set before they are divided.

References:
  Radford et al. "Language models are unsupervised multitask learners", 2019.
  Gao et al. "The Pile", 2020, section 3.1 (bits per byte).
    https://arxiv.org/abs/2101.00027.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from cxjax import settings
from cxjax import types
from cxjax.data import encoding
from cxjax.data import packing
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.tasks import base
from cxjax.tasks import packed_text

# Tokenizers of this package have one token that begins a chunk and ends a
# document, as GPT-2's.
OWN = tokenizer_lib.SPECIAL['cls']


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalText(packed_text.PackedText):
  """Prediction of the next token in rows of packed text.

  A row holds chunks of documents. Attention and loss stay within a chunk, and
  its positions count from 0.

  Attributes:
    end_id: id that ends a document.
  """

  end_id: int
  inputs = ('tokens', 'segments', 'position_ids', 'mask')
  metrics = ('bits_per_byte', *base.METRICS)
  primary_metric = 'perplexity'
  causal = True  # A model must not see the tokens after the one that it reads.
  features = (*packing.TOKENS, 'counted')
  held_out_features = (*packing.TOKENS, 'counted', 'bytes')

  @property
  def row_length(self) -> int:
    """Tokens of a row: the last one is predicted, and not read."""
    return self.length + 1

  @settings.fixed()
  def batch(
    self, key: jax.Array, step: jax.typing.ArrayLike, rows: Any, /
  ) -> types.Batch:
    """Makes the batch of its rows; nothing is random.

    Args:
      key: not read.
      step: not read.
      rows: `packing.Rows`, `[B, L + 1]` int32 each.

    Returns:
      `{'x': {'tokens', 'segments', 'position_ids': [B, L], 'mask': [B, L]
      bool}, 'y': [B, L] int32, 'weights': [B, L] float32}`. `y` is the next
      token; its weight is 1 if it belongs to the same chunk and to no prompt.
      Held-out batches have 'bytes', `[B, L]`, that `y` stands for.
    """
    del key, step
    names = ('tokens', 'segments', 'position_ids')
    x = {name: rows[name][:, :-1] for name in names}
    # What begins a chunk does not count, nor does padding: a token that counts
    # follows one of its own chunk.
    counted = rows['counted'][:, 1:] > 0
    found = {
      'x': {**x, 'mask': x['segments'] > 0},
      'y': rows['tokens'][:, 1:],
      'weights': counted.astype(jnp.float32),
    }
    if 'bytes' in rows:
      found['bytes'] = rows['bytes'][:, 1:]
    return found


def make(
  corpus: tokenized_corpus.TokenizedCorpus,
  *,
  vocab_size: int,
  length: int,
  begin_token: str = '',
  end_token: str = '',
  shards: int = 1,
) -> CausalText:
  """Makes the task of a corpus.

  Args:
    corpus: the documents, encoded by `encoder`.
    vocab_size: number of ids of the models.
    length: `L`, tokens of a row.
    begin_token: token that begins a chunk; '' takes a usual one.
    end_token: token that ends a document, as of `encoder`.
    shards: number of parts of a batch that are read independently.

  Returns:
    The task.

  Raises:
    UserError: the tokenizer lacks a token, or a number is invalid.
  """
  names = (*OWN, *tokenizer_lib.BEGINS)
  return CausalText(
    vocab_size=vocab_size,
    length=length,
    pad_id=0,  # No token: the mask hides it.
    cls_id=tokenizer_lib.token_id(
      corpus.tokenizer, begin_token, 'data.begin_token', names
    ),
    end_id=_end_id(corpus.tokenizer, end_token),
    shards=shards,
    corpus=corpus,
  )


def encoder(length: int, end_token: str = '') -> encoding.Encode:
  """Returns the function that encodes documents for the task.

  Args:
    length: `L`, tokens of a row.
    end_token: token that ends a document; '' takes a usual one.
  """
  end_id = functools.partial(_end_id, name=end_token)
  return functools.partial(encoding.spans, end_id=end_id, length=length)


def _end_id(tokenizer: tokenizers.Tokenizer, name: str) -> int:
  names = (*tokenizer_lib.ENDS, *OWN)
  return tokenizer_lib.token_id(tokenizer, name, 'data.end_token', names)


def _make(data: Any, key: jax.Array) -> CausalText:
  del key
  end_token = data.get('end_token', '')
  return make(
    packed_text.load(data, encoder(data.length, end_token)),
    vocab_size=data.vocab_size,
    length=data.length,
    begin_token=data.get('begin_token', ''),
    end_token=end_token,
    shards=data.shards,
  )


def _make_abstract(data: Any, key: jax.Array) -> CausalText:
  del key
  return CausalText(
    vocab_size=data.vocab_size,
    length=data.length,
    pad_id=0,
    cls_id=0,  # The ids change no shape.
    end_id=0,
    shards=data.shards,
  )


base.register('causal_text', _make, _make_abstract, paths=packed_text.PATHS)
