"""A corpus, split by document and tokenized."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import tokenizers

from cxjax import errors
from cxjax import files
from cxjax.data import corpus as corpus_lib
from cxjax.data import tokenizer as tokenizer_lib

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
      'Restore it, or choose another workdir.',
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
      f'Set data.vocab_size={size}, or choose another workdir.',
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
  """Documents as ids, tokenized when they are read; cannot be sliced."""

  def __init__(self, documents: Sequence[str], tokenizer: tokenizers.Tokenizer):
    """Tokenizes nothing yet."""
    self._documents, self._tokenizer = documents, tokenizer

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._documents)

  def __getitem__(  # type: ignore[override]
    self, index: int
  ) -> np.ndarray:
    """`[n]` int32 ids of a document, without special tokens."""
    encoding = self._tokenizer.encode(
      self._documents[index], add_special_tokens=False
    )
    return np.array(encoding.ids, np.int32)


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
  """Some documents of many; cannot be sliced."""

  def __init__(self, documents: Sequence[Any], numbers: np.ndarray):
    """Reads nothing yet."""
    self._documents, self._numbers = documents, numbers

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._numbers)

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    """The document `index` of those chosen."""
    return self._documents[int(self._numbers[index])]
