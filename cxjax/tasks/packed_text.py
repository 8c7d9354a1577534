"""Rows of packed text: what the tasks on text have in common."""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING
from typing import Any

import jax
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.data import encoding
from cxjax.data import packing
from cxjax.data import records
from cxjax.data import tokenized_corpus

if TYPE_CHECKING:
  import grain

# Fields of a data block that locate files.
PATHS = ('folder', 'tokenizer')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedText:
  """Base class of tasks on rows of packed chunks of documents.

  A chunk begins with a CLS token; attention stays within it. A subclass defines
  `batch`, `inputs`, `metrics` and `primary_metric`.

  Attributes:
    vocab_size: number of ids, all of them classes.
    length: `L`, tokens that a model reads of a row.
    pad_id: id that fills a row.
    cls_id: id that begins a chunk.
    shards: number of parts of a batch that are read independently.
    corpus: documents of the task; None for shapes alone.
  """

  vocab_size: int
  length: int
  pad_id: int
  cls_id: int
  shards: int = 1
  corpus: tokenized_corpus.TokenizedCorpus | None = None
  # Features of a row in training, and of a held-out one.
  features = packing.TOKENS
  held_out_features = packing.TOKENS

  def __post_init__(self) -> None:
    """Raises UserError for an invalid length, or a token of no row."""
    errors.require(
      self.length >= 2,
      f'data.length={self.length} must be at least 2: CLS and a token.',
    )
    if self.corpus is not None:
      names = ('pad_id', 'cls_id', 'mask_id', 'end_id')
      most = max(getattr(self, name, 0) for name in names)
      errors.require(
        most < self.vocab_size,
        f'The special token {self.corpus.tokenizer.id_to_token(most)!r} has '
        f'the id {most}, and the models the ids 0 to {self.vocab_size - 1}: '
        'take another for data.begin_token and data.end_token, or the '
        'tokenizer that the models were trained with.',
      )

  @property
  def row_length(self) -> int:
    """Tokens of a row, as the host packs it."""
    return self.length

  @property
  def num_classes(self) -> int:
    """`C`, the number of ids."""
    return self.vocab_size

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Hashes of the corpus and of its tokenizer."""
    return {} if self.corpus is None else self.corpus.fingerprints

  def batch(self, key: jax.Array, step: Any, rows: Any, /) -> types.Batch:
    """Makes the batch of `(key, step)` of its rows; a subclass defines it."""
    raise NotImplementedError(f'{type(self).__name__} does not define batch.')

  def held_out_rows(self, size: int) -> packing.Rows:
    """Packs held-out documents into rows.

    Args:
      size: maximal number of rows.

    Returns:
      The rows, see `packing.held_out_rows`.
    """
    return packing.held_out_rows(
      self._opened().held_out,
      size,
      length=self.row_length,
      pad_id=self.pad_id,
      cls_id=self.cls_id,
      features=self.held_out_features,
    )

  def held_out(self, key: jax.Array, size: int) -> types.Batch:
    """Makes the held-out set, the batch of step 0 of held-out rows.

    Args:
      key: typed PRNG key.
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
      spec = packing.spec(size, self.row_length, self.held_out_features)
      rows = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
    else:
      rows = self.held_out_rows(size)
    return jax.jit(self.batch)(key, 0, rows)

  def host_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the rows of a batch, int32."""
    return packing.spec(batch_size, self.row_length, self.features)

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
      length=self.row_length,
      pad_id=self.pad_id,
      cls_id=self.cls_id,
      batch_size=batch_size,
      seed=seed,
      shard=shard,
      features=self.features,
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


def load(
  data: Any, encode: encoding.Encode = encoding.ids
) -> tokenized_corpus.TokenizedCorpus:
  """Loads the corpus of a data block.

  Args:
    data: data block of a config.
    encode: tokenizes documents.

  Returns:
    The corpus.

  Raises:
    UserError: the source, its fields or the tokenizer is invalid.
  """
  option = functools.partial(_option, data)
  return tokenized_corpus.load(
    data.source,
    vocab_size=data.vocab_size,
    tokenizer=data.tokenizer,
    held_out=data.held_out,
    whole_files=data.whole_files,
    tfds_folder=data.tfds_folder,
    folder=data.folder,
    fields=records.Fields(
      option('field', records.TEXT),
      option('prompt_field', ''),
      option('completion_field', ''),
    ),
    padded_vocab=option('padded_vocab', False),
    encode=encode,
  )


def _option(data: Any, name: str, default: Any) -> Any:
  """A field of a data block, which that of an earlier config may lack."""
  return data.get(name, default)
