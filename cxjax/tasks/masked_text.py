"""Masked-token prediction on text, packed on the host and masked on the device.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import TYPE_CHECKING
from typing import Any

import jax
import numpy as np

from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.data import masking
from cxjax.data import packing
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.tasks import base

if TYPE_CHECKING:
  import grain


@dataclasses.dataclass(frozen=True)
class MaskedText:
  """Prediction of masked tokens in rows of packed text.

  A row holds chunks of documents, each of which begins with a CLS token; the
  attention of a token stays within its chunk. Of the chosen tokens, 80% become
  MASK, 10% stay and 10% become a random one.

  Attributes:
    vocab_size: number of ids, all of them classes.
    length: `L`, tokens of a row.
    mask_rate: probability that a token other than CLS is chosen, in (0, 1).
    pad_id: id that fills a row.
    cls_id: id that begins a chunk.
    mask_id: id that hides a token.
    shards: number of parts of a batch that are read independently.
    corpus: documents of the task; None for shapes alone.
  """

  vocab_size: int
  length: int
  mask_rate: float
  pad_id: int
  cls_id: int
  mask_id: int
  shards: int = 1
  corpus: tokenized_corpus.TokenizedCorpus | None = None
  inputs = ('tokens', 'segments', 'position_ids', 'mask', 'target_positions')
  metrics = base.METRICS
  primary_metric = base.METRICS[0]

  def __post_init__(self) -> None:
    """Raises UserError for an invalid length or rate."""
    errors.require(
      self.length >= 2,
      f'data.length={self.length} must be at least 2: CLS and a token.',
    )
    masking.num_masked(self.length, self.mask_rate)

  @property
  def num_classes(self) -> int:
    """`C`, the number of ids."""
    return self.vocab_size

  @property
  def slots(self) -> int:
    """`P`, the number of slots for the target positions of a row."""
    return masking.num_masked(self.length, self.mask_rate)

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Hashes of the corpus and of its tokenizer."""
    return {} if self.corpus is None else self.corpus.fingerprints

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
      random_ids=(0, self.vocab_size),
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

  def held_out_rows(self, size: int) -> packing.Rows:
    """Packs held-out documents into rows, not masked.

    Args:
      size: maximal number of rows.

    Returns:
      The rows, see `packing.held_out_rows`.
    """
    return packing.held_out_rows(
      self._opened().held_out,
      size,
      length=self.length,
      pad_id=self.pad_id,
      cls_id=self.cls_id,
    )

  def held_out(self, key: jax.Array, size: int) -> types.Batch:
    """Makes the held-out set: held-out rows, masked once.

    Args:
      key: typed PRNG key of the masks.
      size: maximal number of rows.

    Returns:
      A batch of fewer rows if the documents end before.
    """
    if self.corpus is None:
      errors.require(
        isinstance(key, jax.core.Tracer),
        'This task was made for shapes alone: use jax.eval_shape, or '
        'cxjax.tasks.make.',
      )
      rows = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.host_spec(size)
      )
    else:
      rows = self.held_out_rows(size)
    return jax.jit(self.batch)(key, 0, rows)

  def host_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the rows of a batch, `[B, L]` int32."""
    return packing.spec(batch_size, self.length)

  def host_batches(
    self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
  ) -> 'grain.IterDataset':
    """Packs the training documents, in a new order in every epoch.

    Args:
      batch_size: number of rows of each yielded batch.
      seed: seed of the order.
      shard: `(i, n)` reads every `n`th document, from the `i`th on.

    Returns:
      An endless dataset of `packing.Rows`.
    """
    return packing.pack(
      self._opened().train,
      length=self.length,
      pad_id=self.pad_id,
      cls_id=self.cls_id,
      batch_size=batch_size,
      seed=seed,
      shard=shard,
    )

  def check(self, batch_size: int) -> None:
    """Raises UserError unless the shards divide the batch."""
    errors.require(
      self.shards >= 1 and batch_size % self.shards == 0,
      f'data.shards={self.shards} must divide the batch_size={batch_size}.',
    )

  def save(self, folder: pathlib.Path) -> None:
    """Writes the tokenizer and what identifies the corpus into a folder."""
    self._opened().save(folder)

  def _opened(self) -> tokenized_corpus.TokenizedCorpus:
    assert self.corpus is not None, 'The task was made for shapes alone.'
    return self.corpus


def make(
  corpus: tokenized_corpus.TokenizedCorpus,
  *,
  length: int,
  mask_rate: float,
  shards: int = 1,
) -> MaskedText:
  """Makes the task of a corpus.

  Args:
    corpus: the tokenized documents.
    length: `L`, tokens of a row.
    mask_rate: probability that a token other than CLS is chosen, in (0, 1).
    shards: number of parts of a batch that are read independently.

  Returns:
    The task.

  Raises:
    UserError: the tokenizer lacks a special token, or a number is invalid.
  """
  ids = tokenizer_lib.special_ids(corpus.tokenizer)
  return MaskedText(
    vocab_size=corpus.tokenizer.get_vocab_size(),
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
  corpus = tokenized_corpus.load(
    data.source,
    vocab_size=data.vocab_size,
    tokenizer=data.tokenizer,
    held_out=data.held_out,
    whole_files=data.whole_files,
    tfds_folder=data.tfds_folder,
    folder=data.folder,
  )
  return make(
    corpus, length=data.length, mask_rate=data.mask_rate, shards=data.shards
  )


def _make_abstract(data: Any, key: jax.Array) -> MaskedText:
  del key
  # The ids of special tokens change no shape.
  pad_id, cls_id, mask_id = range(len(tokenizer_lib.SPECIAL))
  return MaskedText(
    vocab_size=data.vocab_size,
    length=data.length,
    mask_rate=data.mask_rate,
    pad_id=pad_id,
    cls_id=cls_id,
    mask_id=mask_id,
    shards=data.shards,
  )


base.register('text', _make, _make_abstract, paths=('folder', 'tokenizer'))
