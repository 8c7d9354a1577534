"""Masked-token prediction on text, packed on the host and masked on the device.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
"""

import dataclasses
from typing import Any

import jax

from cxjax import settings
from cxjax import types
from cxjax.data import masking
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.tasks import base
from cxjax.tasks import packed_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedText(packed_text.PackedText):
  """Prediction of masked tokens in rows of packed text.

  A row holds chunks of documents, each of which begins with a CLS token; the
  attention of a token stays within its chunk. Of the chosen tokens, 80% become
  MASK, 10% stay and 10% become a random one. The held-out set is masked once.

  Attributes:
    mask_rate: probability that a token other than CLS is chosen, in (0, 1).
    mask_id: id that hides a token.
    random_ids: number of ids that a random token is drawn from.
  """

  mask_rate: float
  mask_id: int
  random_ids: int
  inputs = ('tokens', 'segments', 'position_ids', 'mask', 'target_positions')
  metrics = base.METRICS
  primary_metric = base.METRICS[0]

  def __post_init__(self) -> None:
    """Raises UserError for an invalid length or rate."""
    super().__post_init__()
    masking.num_masked(self.length, self.mask_rate)

  @property
  def slots(self) -> int:
    """`P`, the number of slots for the target positions of a row."""
    return masking.num_masked(self.length, self.mask_rate)

  @settings.fixed()
  def batch(
    self, key: jax.Array, step: jax.typing.ArrayLike, rows: Any
  ) -> types.Batch:
    """Makes the batch of `(key, step)`: its rows, masked afresh.

    Args:
      key: typed PRNG key of the data stream.
      step: non-negative integer.
      rows: `packing.Rows`, `[B, L]` int32 each.

    Returns:
      `{'x': {'tokens', 'segments', 'position_ids': [B, L], 'mask': [B, L] bool,
      'target_positions': [B, P]}, 'y': [B, P], 'weights': [B, P]}`, the last
      three from `masking.mask_tokens`.
    """
    tokens, real = rows['tokens'], rows['segments'] > 0
    masked = masking.mask_tokens(
      jax.random.fold_in(key, step),
      tokens,
      real & (tokens != self.cls_id),
      rate=self.mask_rate,
      slots=self.slots,
      mask_id=self.mask_id,
      random_ids=(0, self.random_ids),
    )
    return {
      'x': {
        **rows,
        'tokens': masked['tokens'],
        'mask': real,
        'target_positions': masked['target_positions'],
      },
      'y': masked['labels'],
      'weights': masked['weights'],
    }


def make(
  corpus: tokenized_corpus.TokenizedCorpus,
  *,
  length: int,
  mask_rate: float,
  shards: int = 1,
  vocab_size: int = 0,
) -> MaskedText:
  """Makes the task of a corpus.

  Args:
    corpus: the tokenized documents.
    length: `L`, tokens of a row.
    mask_rate: probability that a token other than CLS is chosen, in (0, 1).
    shards: number of parts of a batch that are read independently.
    vocab_size: number of ids of the models; 0 is that of the tokenizer.

  Returns:
    The task.

  Raises:
    UserError: the tokenizer lacks a special token, or a number is invalid.
  """
  ids = tokenizer_lib.special_ids(corpus.tokenizer)
  size = tokenizer_lib.num_ids(corpus.tokenizer, vocab_size or None)
  return MaskedText(
    vocab_size=vocab_size or size,
    random_ids=size,
    length=length,
    mask_rate=mask_rate,
    pad_id=ids['pad'],
    cls_id=ids['cls'],
    mask_id=ids['mask'],
    shards=shards,
    corpus=corpus,
  )


def _make(data: Any, key: jax.Array) -> MaskedText:
  del key
  return make(
    packed_text.load(data),
    length=data.length,
    mask_rate=data.mask_rate,
    shards=data.shards,
    vocab_size=data.vocab_size,
  )


def _make_abstract(data: Any, key: jax.Array) -> MaskedText:
  del key
  # The ids of special tokens change no shape.
  pad_id, cls_id, mask_id = range(len(tokenizer_lib.SPECIAL))
  return MaskedText(
    vocab_size=data.vocab_size,
    random_ids=data.vocab_size,
    length=data.length,
    mask_rate=data.mask_rate,
    pad_id=pad_id,
    cls_id=cls_id,
    mask_id=mask_id,
    shards=data.shards,
  )


base.register('text', _make, _make_abstract, paths=packed_text.PATHS)
