"""Masked-token prediction on text: packed on the host, masked on the device.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import grain
from grain import experimental as grain_experimental
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cxjax import errors
from cxjax.data import masking
from cxjax.data import tokenizer as tokenizer_lib

BINS = 64  # Rows that are filled at once, and shuffled among themselves.
Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class MaskedText:
  """Rows of text; the model predicts the tokens that were chosen.

  A row holds pieces of documents, each behind a CLS token; a token sees its own
  piece and no other. Of the chosen tokens 80% become MASK, 10% stay and 10%
  become a random one.

  Attributes:
    vocab_size: number of ids, all of them classes.
    length: `L`, tokens of a row.
    mask_rate: probability of each token but CLS to be chosen, in (0, 1).
    pad_id: fills a row.
    cls_id: begins a piece.
    mask_id: hides a token.
  """

  vocab_size: int
  length: int
  mask_rate: float
  pad_id: int
  cls_id: int
  mask_id: int

  def __post_init__(self):
    """Raises UserError for a length or a rate that cannot be."""
    errors.require(
      self.length >= 2,
      f'data.length={self.length} must be at least 2: CLS and a token.',
    )
    masking.num_masked(self.length, self.mask_rate)

  @property
  def num_classes(self) -> int:
    """Every id is a class."""
    return self.vocab_size

  @property
  def slots(self) -> int:
    """`P`: room for the chosen positions of a row."""
    return masking.num_masked(self.length, self.mask_rate)

  def spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the rows of a batch."""
    one = jax.ShapeDtypeStruct((batch_size, self.length), jnp.int32)
    return {'tokens': one, 'segments': one, 'position_ids': one}

  def draw(self, key: jax.Array, step: jax.Array, rows: Any) -> dict[str, Any]:
    """The batch of `(key, step)`: its rows, masked afresh.

    Args:
      key: the stream.
      step: non-negative integer.
      rows: `{'tokens', 'segments', 'position_ids'}`, `[B, L]` int32 each: ids; which
        piece of the row, from 1, or 0 for padding; position in the piece.

    Returns:
      `{'x': {'tokens', 'segments', 'position_ids': [B, L], 'mask': [B, L] bool,
      'target_positions': [B, P]}, 'y': [B, P], 'weights': [B, P]}`, as of
      `masking.mask_tokens`.
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


def make(
  tokenizer: tokenizers.Tokenizer, *, length: int, mask_rate: float
) -> MaskedText:
  """The task of a tokenizer; raises UserError where one cannot be made."""
  ids = tokenizer_lib.special_ids(tokenizer)
  return MaskedText(
    vocab_size=tokenizer.get_vocab_size(),
    length=length,
    mask_rate=mask_rate,
    pad_id=ids['pad'],
    cls_id=ids['cls'],
    mask_id=ids['mask'],
  )


def held_out_rows(
  documents: Sequence[np.ndarray], task: MaskedText, size: int
) -> Rows:
  """The first rows of the held-out documents: `size`, or fewer if they end.

  Fewer are a multiple of 32 if they can be, so that parts are equal.

  Args:
    documents: ids of each.
    task: of the rows.
    size: how many at most.

  Returns:
    `{'tokens', 'segments', 'position_ids'}`, `[N, L]` int32 each.
  """
  rows = pack(documents, task, batch_size=1, seed=None)
  found = list(itertools.islice(rows, size))
  errors.require(
    bool(found), 'The documents held out have no token. Raise data.held_out.'
  )
  if 32 < len(found) < size:
    found = found[: len(found) // 32 * 32]
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


class _Pieces(grain_experimental.FlatMapTransform):
  """A document in pieces of at most a row, each behind a CLS token."""

  max_fan_out = 1_000_000

  def __init__(self, length, cls_id):
    self._length, self._cls_id = length, cls_id

  def flat_map(self, element):
    most = self._length - 1
    starts = range(0, len(element), most)
    cls = np.array([self._cls_id], np.int32)
    return [
      {'tokens': np.concatenate([cls, element[i : i + most]])} for i in starts
    ]


def _named(packed):
  return {
    'tokens': packed['tokens'],
    'segments': packed['tokens_segment_ids'],
    'position_ids': packed['tokens_positions'],
  }


def pack(
  documents: Sequence[np.ndarray],
  task: MaskedText,
  *,
  batch_size: int,
  seed: int | None,
  shard: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
  """Batches of rows of the documents, in an order that the seed fixes.

  Args:
    documents: ids of each.
    task: length of a row and its special tokens.
    batch_size: `B`.
    seed: of the order, new in every epoch, without end; None reads the
      documents once, in their own order.
    shard: `(i, n)` reads every `n`th document, from the `i`th on.

  Returns:
    A dataset of `{'tokens', 'segments', 'position_ids'}`, `[B, L]` int32 each. Its
    iterators save and restore their state.
  """
  first, number = shard
  errors.require(
    len(documents) >= number,
    f'{len(documents)} documents cannot be read in data.shards={number} parts. '
    'Lower it.',
  )
  dataset = grain.MapDataset.source(documents)[first::number]
  if seed is not None:
    seed = (seed + first) % 2**32
    dataset = dataset.seed(seed).shuffle().repeat()
  # One thread: it must keep up with training, and no more.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)
  dataset = dataset.to_iter_dataset(options)
  dataset = grain_experimental.FlatMapIterDataset(
    dataset, _Pieces(task.length, task.cls_id)
  )
  dataset = grain_experimental.FirstFitPackIterDataset(
    dataset,
    length_struct={'tokens': task.length},
    padding_struct={'tokens': task.pad_id},
    num_packing_bins=BINS,
    seed=seed or 0,
    shuffle_bins=seed is not None,
  )
  return dataset.map(_named).batch(batch_size, drop_remainder=True)
