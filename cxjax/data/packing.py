"""Sequence packing on the host: documents to rows of equal length.

A row holds chunks of documents, each of which begins with a CLS token; the
attention of a token stays within its chunk.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors

if TYPE_CHECKING:
  import grain

# Number of rows that are filled at a time, and shuffled among themselves.
BINS = 64
# Held-out rows are left out without a warning if more than this share is read.
MOST_KEPT = 0.9
# `{'tokens', 'segments', 'position_ids'}`, `[B, L]` int32 each: ids; the number
# of the chunk in its row, from 1, or 0 for padding; the position in the chunk.
# Other features of the documents are 0 for CLS and for padding.
Rows: TypeAlias = dict[str, np.ndarray]
TOKENS: tuple[str, ...] = ('tokens',)


def spec(
  batch_size: int, length: int, features: Sequence[str] = TOKENS
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of `batch_size` rows of `length` tokens."""
  leaf = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
  return dict.fromkeys((*features, 'segments', 'position_ids'), leaf)


def pack(
  documents: Sequence[Any],
  *,
  length: int,
  pad_id: int,
  cls_id: int,
  batch_size: int,
  seed: int | None,
  shard: tuple[int, int] = (0, 1),
  features: Sequence[str] = TOKENS,
) -> 'grain.IterDataset':
  """Packs documents into batches of rows.

  Args:
    documents: `[n]` ids of each document, or a dict of the features.
    length: `L`, tokens of a row.
    pad_id: id that fills a row.
    cls_id: id that begins a chunk.
    batch_size: `B`, rows of a batch.
    seed: seed of the order, which is new in every epoch, without end; None
      reads the documents once, in their own order.
    shard: `(i, n)` reads every `n`th document, from the `i`th on.
    features: keys of a document that a row has, 'tokens' among them.

  Returns:
    A dataset of `Rows`. Its iterators save and restore their state.

  Raises:
    UserError: there are fewer documents than shards, or those of the shard have
      no token and are to be read without end.
  """
  # Imported here, as it is slow to import.
  import grain
  from grain import experimental as grain_experimental

  first, number = shard
  errors.require(
    len(documents) >= number,
    f'{len(documents)} documents cannot be read in data.shards={number} parts. '
    f'Lower it to at most {len(documents)}.',
  )
  # It would look for a token without end. Mostly the first document has some.
  errors.require(
    seed is None
    or any(
      len(_features(documents[i])['tokens'])
      for i in range(first, len(documents), number)
    ),
    f'No training document of part {first + 1} of data.shards={number} has a '
    'token. Lower data.shards, or take another text.',
  )
  dataset = grain.MapDataset.source(documents)[first::number]
  if seed is not None:
    seed = (seed + first) % 2**32
    dataset = dataset.seed(seed).shuffle().repeat()
  # One thread keeps up with training; more would compete with it for the CPU.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)
  dataset = dataset.to_iter_dataset(options)
  dataset = grain_experimental.FlatMapIterDataset(
    dataset, _Chunks(length, cls_id, features)
  )
  dataset = grain_experimental.FirstFitPackIterDataset(
    dataset,
    length_struct=dict.fromkeys(features, length),
    padding_struct={**dict.fromkeys(features, 0), 'tokens': pad_id},
    num_packing_bins=BINS,
    seed=seed or 0,
    shuffle_bins=seed is not None,
  )
  rename = functools.partial(_rename, features=tuple(features))
  return dataset.map(rename).batch(batch_size, drop_remainder=True)


def held_out_rows(
  documents: Sequence[Any],
  size: int,
  *,
  length: int,
  pad_id: int,
  cls_id: int,
  features: Sequence[str] = TOKENS,
) -> Rows:
  """Packs held-out documents into at most `size` rows.

  If the documents end before that and there are more than 32 rows, their number
  is rounded down to a multiple of 32, so that an evaluation in parts has equal
  parts. A warning says so if a tenth of them or more is left out.

  Args:
    documents: held-out documents, as for `pack`.
    size: maximal number of rows.
    length: `L`, tokens of a row.
    pad_id: id that fills a row.
    cls_id: id that begins a chunk.
    features: keys of a document, as for `pack`.

  Returns:
    The first `N` rows.

  Raises:
    UserError: the documents have no token.
  """
  rows: Iterator[Rows] = iter(
    pack(
      documents,
      length=length,
      pad_id=pad_id,
      cls_id=cls_id,
      batch_size=1,
      seed=None,
      features=features,
    )
  )
  found = list(itertools.islice(rows, size))
  errors.require(
    bool(found), 'The held-out documents have no token. Raise data.held_out.'
  )
  if 32 < len(found) < size:
    whole, found = len(found), found[: len(found) // 32 * 32]
    if len(found) <= MOST_KEPT * whole:
      logging.warning(
        'The held-out documents fill %d rows, and the first %d are read, a '
        'multiple of 32. To read all set data.eval_size=%d, or in Python call '
        'held_out(key, %d).',
        whole,
        len(found),
        whole,
        whole,
      )
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


class _Chunks:
  """Splits a document into chunks of at most a row, each behind a CLS token.

  A `FlatMapTransform` of grain, whose class it does not need.
  """

  max_fan_out = 1_000_000

  def __init__(self, length: int, cls_id: int, features: Sequence[str]):
    self._length = length
    self._first = {**dict.fromkeys(features, 0), 'tokens': cls_id}

  def flat_map(self, element: Any) -> list[dict[str, np.ndarray]]:
    """Chunks of the `[n]` ids, or of the features, of a document."""
    element = _features(element)
    most = self._length - 1
    starts = range(0, len(element['tokens']), most)
    return [
      {
        name: np.concatenate(
          [np.array([first], np.int32), element[name][i : i + most]]
        )
        for name, first in self._first.items()
      }
      for i in starts
    ]


def _features(document: Any) -> Mapping[str, np.ndarray]:
  """The features of a document, which may be its ids alone."""
  return document if isinstance(document, Mapping) else {'tokens': document}


def _rename(packed: dict[str, np.ndarray], features: tuple[str, ...]) -> Rows:
  return {
    **{name: packed[name] for name in features},
    'segments': packed['tokens_segment_ids'],
    'position_ids': packed['tokens_positions'],
  }
