"""Masked-token prediction on text: packed on the host, masked on the device.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import grain
from grain import experimental as grain_experimental
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cxjax import errors
from cxjax import files
from cxjax.data import corpus as corpus_lib
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
    return {'tokens': one, 'segments': one, 'places': one}

  def draw(self, key: jax.Array, step: jax.Array, rows: Any) -> dict[str, Any]:
    """The batch of `(key, step)`: its rows, masked afresh.

    Args:
      key: the stream.
      step: non-negative integer.
      rows: `{'tokens', 'segments', 'places'}`, `[B, L]` int32 each: ids; which
        piece of the row, from 1, or 0 for padding; position in the piece.

    Returns:
      `{'x': {'tokens', 'segments', 'places': [B, L], 'mask': [B, L] bool,
      'positions': [B, P]}, 'y': [B, P], 'weights': [B, P]}`, as of
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
        'positions': masked['positions'],
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


# Documents that are tokenized all at once.
IN_MEMORY = 200_000
# Of text that a tokenizer is trained on, at most.
TRAINING_CHARACTERS = 50_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
  """A corpus, its tokenizer and its split.

  Attributes:
    corpus: the documents.
    tokenizer: of both parts.
    train: documents to learn from, as ids.
    held_out: documents of the evaluation, as ids.
  """

  corpus: corpus_lib.Corpus
  tokenizer: tokenizers.Tokenizer
  train: Sequence[np.ndarray]
  held_out: Sequence[np.ndarray]

  @property
  def fingerprints(self) -> dict[str, str]:
    """Of the text and of the tokenizer."""
    return {
      'corpus': self.corpus.fingerprint,
      'tokenizer': tokenizer_lib.fingerprint(self.tokenizer),
    }

  def save(self, folder: pathlib.Path) -> None:
    """Keeps what `load` needs to find this text again, unless it is there."""
    if (folder / 'corpus.json').exists():
      return
    tokenizer_lib.save(self.tokenizer, folder / 'tokenizer.json')
    if self.corpus.source == 'docstrings':
      corpus_lib.save(self.corpus, folder / 'documents.json')
    files.write_json(
      folder / 'corpus.json',
      {
        'source': self.corpus.source,
        'versions': self.corpus.versions,
        'documents': len(self.corpus.documents),
        'held_out': len(self.held_out),
        **self.fingerprints,
      },
    )


@functools.lru_cache(4)
def load(
  source: str,
  *,
  vocab_size: int,
  tokenizer: str = '',
  held_out: float = 0.05,
  whole_files: bool = False,
  tfds_folder: str = '',
  folder: str = '',
) -> Text:
  """The text of a source, split and tokenized.

  Args:
    source: as for `corpus.load`.
    vocab_size: of the tokenizer, which is trained on what is not held out.
    tokenizer: file of one from elsewhere, of that size; '' trains one.
    held_out: share of the documents.
    whole_files: as for `corpus.load`.
    tfds_folder: as for `corpus.load`.
    folder: where `Text.save` kept this text before; '' is nowhere.

  Returns:
    The text.

  Raises:
    UserError: a source or a tokenizer that will not do, or a text that is not
      what it was.
  """
  kept = pathlib.Path(folder) if folder else None
  corpus = corpus_lib.load(
    source,
    whole_files=whole_files,
    tfds_folder=tfds_folder,
    cached=kept and kept / 'documents.json',
  )
  record = kept and kept / 'corpus.json'
  if record and record.exists():
    before = files.read_json(record)
    errors.require(
      before['corpus'] == corpus.fingerprint,
      f'The text of data.source={source} changed since {kept} was made '
      f'(fingerprint {before["corpus"]} then, {corpus.fingerprint} now). '
      'Restore it, or choose another --workdir.',
    )
  learn, hold = split(len(corpus.documents), held_out)
  learn, hold = (Chosen(corpus.documents, part) for part in (learn, hold))
  if len(corpus.documents) <= IN_MEMORY:
    hold = unseen(list(learn), list(hold))
  path = pathlib.Path(tokenizer) if tokenizer else None
  if path is None and kept and (kept / 'tokenizer.json').exists():
    path = kept / 'tokenizer.json'
  if path is None:
    made = tokenizer_lib.train(_sample(learn), vocab_size)
  else:
    made = tokenizer_lib.load(path)
    size = made.get_vocab_size()
    errors.require(
      size == vocab_size,
      f'The tokenizer {path} has {size} ids and data.vocab_size={vocab_size}. '
      f'Set data.vocab_size={size}, or choose another --workdir.',
    )
  return Text(corpus, made, *(_tokenized(part, made) for part in (learn, hold)))


def unseen(learn: Sequence[str], hold: Sequence[str]) -> list[str]:
  """The documents of `hold` that are not for the most part in `learn`.

  Docstrings repeat each other's paragraphs. A document goes if more than half
  of its text is lines that stand in `learn` word for word; lines under 40
  characters do not count.

  Args:
    learn: documents to learn from.
    hold: documents held out.

  Returns:
    Those that stay, in their order.

  Raises:
    UserError: none stays.
  """
  known = {line for document in learn for line in document.splitlines()}

  def is_new(document):
    lines = [line for line in document.splitlines() if len(line) >= 40]
    old = sum(len(line) for line in lines if line in known)
    return 2 * old <= sum(map(len, lines))

  kept = [document for document in hold if is_new(document)]
  errors.require(
    bool(kept),
    'All documents held out stand in those to learn from. Raise data.held_out, '
    'or take a text that does not repeat itself.',
  )
  return kept


def _sample(documents):
  """Enough of the documents for a tokenizer, from all over."""
  seen = 0
  for index in np.random.default_rng(0).permutation(len(documents)):
    document = documents[index]
    seen += len(document)
    yield document
    if seen > TRAINING_CHARACTERS:
      return


def _tokenized(documents, tokenizer):
  """All at once where the text is in memory, else one by one."""
  if len(documents) > IN_MEMORY:
    return Tokens(documents, tokenizer)
  encodings = tokenizer.encode_batch_fast(
    list(documents), add_special_tokens=False
  )
  return [np.array(encoding.ids, np.int32) for encoding in encodings]


class Tokens(Sequence):
  """Documents as ids, tokenized when they are read."""

  def __init__(self, documents: Sequence[str], tokenizer: tokenizers.Tokenizer):
    """Tokenizes nothing yet."""
    self._documents, self._tokenizer = documents, tokenizer

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._documents)

  def __getitem__(self, index: int) -> np.ndarray:
    """`[n]` int32 ids of a document, without special tokens."""
    encoding = self._tokenizer.encode(
      self._documents[index], add_special_tokens=False
    )
    return np.array(encoding.ids, np.int32)


def held_out_rows(documents: Sequence[np.ndarray], task: MaskedText, size: int):
  """The first rows of the held-out documents: `size`, or fewer if they end.

  Fewer are a multiple of 32 if they can be, so that parts are equal.

  Args:
    documents: ids of each.
    task: of the rows.
    size: how many at most.

  Returns:
    `{'tokens', 'segments', 'places'}`, `[N, L]` int32 each.
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
    'places': packed['tokens_positions'],
  }


def pack(
  documents: Sequence[np.ndarray],
  task: MaskedText,
  *,
  batch_size: int,
  seed: int | None,
) -> grain.IterDataset:
  """Batches of rows of the documents, in an order that the seed fixes.

  Args:
    documents: ids of each.
    task: length of a row and its special tokens.
    batch_size: `B`.
    seed: of the order, new in every epoch, without end; None reads the
      documents once, in their own order.

  Returns:
    A dataset of `{'tokens', 'segments', 'places'}`, `[B, L]` int32 each. Its
    iterators save and restore their state.
  """
  dataset = grain.MapDataset.source(documents)
  if seed is not None:
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


def split(num_documents: int, share: float) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of the documents to learn from, and of those held out.

  Args:
    num_documents: at least 2.
    share: held out, in (0, 1); at least one document, and not all.

  Returns:
    The first in ascending order; the second in a random one, so that its first
    documents are from all over. The same for the same arguments.

  Raises:
    UserError: a share outside (0, 1).
  """
  errors.require(0 < share < 1, f'data.held_out={share} must be in (0, 1).')
  most = num_documents - 1
  held_out = min(max(round(num_documents * share), 1), most)
  order = np.random.default_rng(0).permutation(num_documents)
  return np.sort(order[held_out:]), order[:held_out]


class Chosen(Sequence):
  """Some documents of many."""

  def __init__(self, documents: Sequence[Any], numbers: np.ndarray):
    """Reads nothing yet."""
    self._documents, self._numbers = documents, numbers

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._numbers)

  def __getitem__(self, index: int) -> Any:
    """The document `index` of those chosen."""
    return self._documents[int(self._numbers[index])]
