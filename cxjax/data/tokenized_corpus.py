"""A corpus split by document into training and held-out part, tokenized."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from absl import logging
import numpy as np
import tokenizers

from cxjax import errors
from cxjax import files
from cxjax import locks
from cxjax.data import corpus as corpus_lib
from cxjax.data import corpus_folder
from cxjax.data import encoding
from cxjax.data import records
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.parallel import multihost

# Corpora of at most this many documents are tokenized at once, in memory.
IN_MEMORY = 200_000
# Of larger ones this many are tokenized at the start too, for their faults.
SAMPLE = 4_000
# A tokenizer is trained on about this many characters at most.
TRAINING_CHARACTERS = 50_000_000
# Shorter lines do not count as repeated text.
SHORTEST_LINE = 40
# Held-out documents that repeat others are left out without a warning up to
# this share of them.
MOST_REPEATED = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedCorpus:
  """A corpus, its tokenizer and its split.

  Attributes:
    corpus: the documents.
    tokenizer: tokenizer of both parts.
    train: training documents, as `encode` of `load` makes them: by default
      `[n]` int32 ids each.
    held_out: held-out documents, alike.
  """

  corpus: corpus_lib.Corpus
  tokenizer: tokenizers.Tokenizer
  train: Sequence[Any] = dataclasses.field(repr=False)
  held_out: Sequence[Any] = dataclasses.field(repr=False)

  @property
  def fingerprints(self) -> dict[str, str]:
    """Hashes of the corpus and of the tokenizer."""
    return {
      'corpus': self.corpus.fingerprint,
      'tokenizer': tokenizer_lib.fingerprint(self.tokenizer),
    }

  def save(self, folder: pathlib.Path) -> None:
    """Writes the tokenizer and the fingerprints, which `load` reads again.

    Docstrings are written too. A folder that holds another corpus is left
    alone. In a run of several processes the first one writes. Runs that share
    the folder wait for each other.

    Args:
      folder: the folder; made if it is missing.

    Raises:
      UserError: the folder has files of somebody else, or cannot be written.
    """
    if multihost.is_first() and not self._is_kept(folder):
      with locks.turn(folder):
        self._write(folder)

  def _is_kept(self, folder: pathlib.Path) -> bool:
    """True if a folder has a record and lacks no file."""
    names = [corpus_folder.TOKENIZER]
    if self.corpus.source == 'docstrings':
      names.append(corpus_folder.DOCUMENTS)
    whole = all((folder / name).exists() for name in names)
    return corpus_folder.read(folder) is not None and whole

  def _write(self, folder: pathlib.Path) -> None:
    record = corpus_folder.read(folder)
    if record is None:
      files.write_json(folder / corpus_folder.RECORD, self._record())
    elif any(record[k] != v for k, v in self.fingerprints.items()):
      return
    path = folder / corpus_folder.TOKENIZER
    if not path.exists():
      tokenizer_lib.save(self.tokenizer, path)
    path = folder / corpus_folder.DOCUMENTS
    if self.corpus.source == 'docstrings' and not path.exists():
      corpus_lib.save(self.corpus, path)

  def _record(self) -> dict[str, Any]:
    return {
      'source': self.corpus.source,
      'versions': self.corpus.versions,
      'documents': len(self.corpus.documents),
      'held_out': len(self.held_out),
      **self.fingerprints,
    }


def load(
  source: str,
  *,
  vocab_size: int,
  tokenizer: str = '',
  held_out: float = 0.05,
  whole_files: bool = False,
  tfds_folder: str = '',
  folder: str = '',
  fields: records.Fields | None = None,
  padded_vocab: bool = False,
  encode: encoding.Encode = encoding.ids,
) -> TokenizedCorpus:
  """Loads, splits and tokenizes the corpus of a source.

  Args:
    source: name of the source, as for `corpus.load`.
    vocab_size: number of ids of the tokenizer.
    tokenizer: path of a `tokenizer.json` of that size, whose special tokens are
      characters in a document; '' trains one on the training documents.
    held_out: share of the documents that are held out, in (0, 1).
    whole_files: whether a text file is one document, as for `corpus.load`.
    tfds_folder: folder of prepared datasets, as for `corpus.load`.
    folder: folder in which `TokenizedCorpus.save` kept this corpus, or may keep
      it later; '' is none.
    fields: fields of the records, as for `corpus.load`.
    padded_vocab: whether a tokenizer of a path may have fewer ids, as those of
      models whose vocabulary is padded, and special tokens above them.
    encode: tokenizes documents.

  Returns:
    The corpus.

  Raises:
    UserError: the source or the tokenizer is invalid, `folder` has files of
      somebody else, or the text or the tokenizer is not the one that it
      records.
  """
  kept = pathlib.Path(folder) if folder else None
  record = corpus_folder.read(kept) if kept else None
  corpus = corpus_lib.load(
    source,
    whole_files=whole_files,
    tfds_folder=tfds_folder,
    cached=kept / corpus_folder.DOCUMENTS if kept and record else None,
    fields=fields,
  )
  if kept and record:
    _require_unchanged(corpus, kept, record)
  parts = split(len(corpus.documents), held_out)
  learn, hold = (Subset(corpus.documents, part) for part in parts)
  if len(corpus.documents) <= IN_MEMORY:
    kept_at = unseen(list(learn), list(hold))
    _log_dropped(source, len(hold), len(kept_at))
    hold = Subset(corpus.documents, parts[1][kept_at])
  else:
    logging.warning(
      '%s has %d documents: held-out ones that repeat training documents stay, '
      'as repeats are searched for among at most %d documents.',
      source,
      len(corpus.documents),
      IN_MEMORY,
    )
  own = kept / corpus_folder.TOKENIZER if kept and record else None
  chosen = _tokenizer(tokenizer, own, vocab_size, learn, padded_vocab)
  if kept and record:
    now = tokenizer_lib.fingerprint(chosen)
    corpus_folder.require_same(kept, record, now)
  if tokenizer:  # One that is trained here has no tokens that a text may mean.
    tokenizer_lib.warn_of_special(chosen, learn)
  encode = encoding.below(vocab_size, encode)
  train, rest = (_tokenize(part, chosen, encode) for part in (learn, hold))
  return TokenizedCorpus(corpus, chosen, train, rest)


def _require_unchanged(
  corpus: corpus_lib.Corpus, kept: pathlib.Path, record: Mapping[str, Any]
) -> None:
  """Raises UserError if `kept` records another corpus."""
  before = record['corpus']
  errors.require(
    before == corpus.fingerprint,
    f'The text of data.source={corpus.source} changed since {kept} was made '
    f'(fingerprint {before} then, {corpus.fingerprint} now). Restore it, or '
    'choose another workdir.',
  )


def _tokenizer(
  path: str,
  own: pathlib.Path | None,
  vocab_size: int,
  documents: Sequence[str],
  padded: bool,
) -> tokenizers.Tokenizer:
  """Loads the tokenizer of a path or of an earlier run, or trains one."""
  file = pathlib.Path(path) if path else None
  if file is None and own and own.exists():
    file = own
  if file is None:
    return tokenizer_lib.train(_sample(documents), vocab_size)
  tokenizer = tokenizer_lib.load(file)
  size = tokenizer_lib.num_ids(tokenizer, vocab_size if padded else None)
  errors.require(
    not padded or size <= vocab_size,
    f'The tokenizer {file} has {size} ids and the model {vocab_size}. Take the '
    'tokenizer that the model was trained with.',
  )
  errors.require(
    padded or size == vocab_size,
    f'The tokenizer {file} has {size} ids and data.vocab_size={vocab_size}. '
    f'Set data.vocab_size={size}, or choose another workdir.',
  )
  return tokenizer


def unseen(learn: Sequence[str], hold: Sequence[str]) -> list[int]:
  """Places of the held-out documents that mostly repeat no training document.

  A document that occurs as a whole among the training documents is dropped.
  Docstrings repeat each other's paragraphs: one is dropped too if more than
  half of the text of its lines occurs word for word as lines of the training
  documents; lines shorter than `SHORTEST_LINE` characters do not count, nor
  those of documents with a prompt, which often share them.

  Args:
    learn: training documents.
    hold: held-out documents.

  Returns:
    The indices of those that remain, in ascending order.

  Raises:
    UserError: none remains.
  """
  known = {line for document in learn for line in document.splitlines()}
  whole = set(learn)

  def is_new(document: str) -> bool:
    if document in whole or isinstance(document, records.Prompted):
      return document not in whole
    lines = [x for x in document.splitlines() if len(x) >= SHORTEST_LINE]
    old = sum(len(line) for line in lines if line in known)
    return 2 * old <= sum(map(len, lines))

  kept = [place for place, document in enumerate(hold) if is_new(document)]
  errors.require(
    bool(kept),
    'All held-out documents repeat the training documents. Raise '
    'data.held_out, or take a text that does not repeat itself.',
  )
  return kept


def _log_dropped(source: str, every: int, kept: int) -> None:
  """Logs how many held-out documents are left out, as a warning if many.

  Of docstrings many are, and nobody can change them.
  """
  many = every - kept > MOST_REPEATED * every and source != 'docstrings'
  if kept < every:
    logging.log(
      logging.WARNING if many else logging.INFO,
      '%d of %d held-out documents repeat training documents and are left out; '
      '%d stay. If these are too few, raise data.held_out, or take a text that '
      'does not repeat itself.',
      every - kept,
      every,
      kept,
    )


def _sample(documents: Sequence[str]) -> Iterator[str]:
  """Documents in random order, as many as a tokenizer is trained on."""
  seen = 0
  for index in np.random.default_rng(0).permutation(len(documents)):
    document = documents[index]
    seen += len(document)
    yield document
    if seen > TRAINING_CHARACTERS:
      return


def _tokenize(
  documents: 'Subset',
  tokenizer: tokenizers.Tokenizer,
  encode: encoding.Encode,
) -> Sequence[Any]:
  """Tokenizes documents now if they fit in memory, else on access."""
  tokens = Tokens(documents, tokenizer, encode)
  if len(documents) <= IN_MEMORY:
    return tokens.first(len(documents))
  logging.info(
    'Of %d documents the first %d are checked now, the others as they are '
    'read.',
    len(documents),
    SAMPLE,
  )
  tokens.first(SAMPLE)
  return tokens


class Tokens(Sequence):
  """Documents that are tokenized on access; cannot be sliced."""

  def __init__(
    self,
    documents: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    encode: encoding.Encode = encoding.ids,
  ):
    """Tokenizes nothing yet."""
    self._documents, self._tokenizer = documents, tokenizer
    self._encode = encode

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._documents)

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    """A document as `encode` makes it; by default `[n]` int32 ids."""
    return self._encoded([index])[0]

  def first(self, number: int) -> Sequence[Any]:
    """The first documents, tokenized at once.

    Args:
      number: how many, or as many as there are.

    Returns:
      The documents as `encode` makes them.

    Raises:
      UserError: one of them cannot be encoded; says which.
    """
    return self._encoded(range(min(number, len(self))))

  def _encoded(self, places: Sequence[int]) -> Sequence[Any]:
    some = [self._documents[place] for place in places]
    try:
      return self._encode(some, self._tokenizer)
    except encoding.DocumentError as error:
      place = places[error.index]
      if isinstance(self._documents, Subset):
        place = self._documents.place(place)
      known = getattr(some[error.index], 'where', '')
      where = known or f'Document {place + 1} of data.source'
      raise errors.UserError(f'{where}: {error}') from error


def split(num_documents: int, share: float) -> tuple[np.ndarray, np.ndarray]:
  """Splits document indices into training and held-out part.

  The split is the same for the same arguments.

  Args:
    num_documents: number of documents, at least 2.
    share: held-out share, in (0, 1); each part has at least one document.

  Returns:
    The training indices in ascending order, and the held-out indices in random
    order, so that the first of them are a sample of all.

  Raises:
    UserError: the share is outside (0, 1).
  """
  errors.require(0 < share < 1, f'data.held_out={share} must be in (0, 1).')
  most = num_documents - 1
  held_out = min(max(round(num_documents * share), 1), most)
  order = np.random.default_rng(0).permutation(num_documents)
  return np.sort(order[held_out:]), order[:held_out]


class Subset(Sequence):
  """Some of the documents of a sequence; cannot be sliced."""

  def __init__(self, documents: Sequence[Any], indices: np.ndarray):
    """Reads nothing yet."""
    self._documents, self._indices = documents, indices

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._indices)

  def place(self, index: int) -> int:
    """Place in the whole sequence of the document at `index` of the subset."""
    return int(self._indices[index])

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    """The document at `index` of the subset."""
    return self._documents[self.place(index)]
