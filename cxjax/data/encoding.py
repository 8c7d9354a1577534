"""Documents as token ids, and as spans that know what they stand for."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

from absl import logging
import numpy as np
import tokenizers

from cxjax import errors
from cxjax.data import records

# `(documents, tokenizer) -> one array, or dict of arrays, for each document`.
Encode: TypeAlias = Callable[
  [Sequence[str], tokenizers.Tokenizer], Sequence[Any]
]
# Texts that take the blank of a tokenizer in place of a completion. Letters are
# first: a mark would fuse with that of "'s", and a digit with digits. The rune
# is unknown, or bytes that hardly merge with others.
SENTINELS = ('x', 'ᚠ', 'Q', ':', '1', '\n')


class Piece(NamedTuple):
  """Tokens of a text.

  Attributes:
    ids: their ids.
    offsets: characters of the text that each stands for, the first and the last
      one excluded.
  """

  ids: Sequence[int]
  offsets: Sequence[tuple[int, int]]


class DocumentError(errors.UserError):
  """A document that cannot be encoded.

  Attributes:
    index: index of the document among those that were to be encoded.
  """

  def __init__(self, message: str, index: int) -> None:
    """Keeps which document it is."""
    super().__init__(message)
    self.index = index


def ids(
  documents: Sequence[str], tokenizer: tokenizers.Tokenizer
) -> list[np.ndarray]:
  """Tokenizes documents.

  Args:
    documents: the documents.
    tokenizer: their tokenizer.

  Returns:
    `[n]` int32 ids of each document, without special tokens.
  """
  encodings = tokenizer.encode_batch_fast(
    list(documents), add_special_tokens=False
  )
  return [np.array(encoding.ids, np.int32) for encoding in encodings]


def spans(
  documents: Sequence[str],
  tokenizer: tokenizers.Tokenizer,
  *,
  end_id: Callable[[tokenizers.Tokenizer], int],
  length: int,
) -> list[dict[str, np.ndarray]]:
  """Tokenizes documents for next-token prediction.

  A prompt and its completion are tokenized apart, as a sampler meets them, and
  truncated to one chunk, since the rest of a completion would be learned
  without its prompt. A blank that the tokenizer puts before each text, as Llama
  2's, stays before a prompt alone.

  Args:
    documents: the documents, which may be `records.Prompted`.
    tokenizer: their tokenizer.
    end_id: finds the id that ends a document.
    length: `L`, most tokens of a chunk.

  Returns:
    `{'tokens', 'counted', 'bytes'}` of each document, `[n]` int32 each: ids,
    the last of which is the end; 1 where a token is learned, and 0 in a prompt;
    the bytes of UTF-8 that a token stands for. Their sum is the length of the
    document in bytes.

  Raises:
    DocumentError: a prompt leaves no room for its completion, or a completion
      has no tokens without a blank before it.
  """
  prompts = [getattr(one, 'prompt', 0) for one in documents]
  heads = [one[:n] for one, n in zip(documents, prompts, strict=True)]
  tails = [one[n:] for one, n in zip(documents, prompts, strict=True)]
  first = _pieces(heads, tokenizer)
  second = _continuations(tails, first, tokenizer)
  end, found, cut = end_id(tokenizer), [], 0
  for i, (head, tail) in enumerate(zip(first, second, strict=True)):
    sizes = (_bytes(heads[i], head), _bytes(tails[i], tail))
    counted = np.ones(len(head.ids) + len(tail.ids) + 1, np.int32)
    counted[: len(head.ids)] = 0
    one = {
      'tokens': np.array([*head.ids, *tail.ids, end], np.int32),
      'counted': counted,
      'bytes': np.concatenate([*sizes, np.zeros(1, np.int32)]),
    }
    if isinstance(documents[i], records.Prompted):
      _require_place(i, heads[i], len(head.ids), length)
      cut += len(counted) > length
      one = {name: value[:length] for name, value in one.items()}
    found.append(one)
  # One that is read on access is of a corpus of which a sample was counted.
  if cut and len(documents) > 1:
    logging.warning(
      '%d of %d completions are truncated, with their prompts, to '
      'data.length=%d tokens.',
      cut,
      len(documents),
      length,
    )
  return found


def below(size: int, encode: Encode) -> Encode:
  """Wraps a function that encodes documents to refuse ids from `size` on.

  Args:
    size: number of ids of the models.
    encode: the function.

  Returns:
    The function, which raises a DocumentError for such a document.
  """

  def checked(
    documents: Sequence[str], tokenizer: tokenizers.Tokenizer
  ) -> Sequence[Any]:
    found = encode(documents, tokenizer)
    for i, one in enumerate(found):
      tokens = np.asarray(
        one.get('tokens', ()) if isinstance(one, Mapping) else one
      )
      if tokens.dtype.kind in 'iu' and tokens.max(initial=-1) >= size:
        most = int(tokens.max())
        raise DocumentError(
          f'It has the token {tokenizer.id_to_token(most)!r}, whose id is '
          f'{most}, and the models have the ids 0 to {size - 1}. Leave it out '
          'of the text, and take no such token for data.end_token.',
          i,
        )
    return found

  return checked


def _require_place(index: int, prompt: str, tokens: int, length: int) -> None:
  """Raises DocumentError for a prompt that leaves its completion no token."""
  if tokens >= length:
    raise DocumentError(
      f'The prompt {prompt[:40]!r}... has {tokens} tokens, and data.length='
      f'{length} leaves none for its completion. Raise data.length, or leave '
      'the record out.',
      index,
    )


def _pieces(
  texts: Sequence[str], tokenizer: tokenizers.Tokenizer
) -> list[Piece]:
  """Tokens of texts, each by itself."""
  encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
  return [Piece(one.ids, one.offsets) for one in encodings]


def _continuations(
  texts: Sequence[str],
  before: Sequence[Piece],
  tokenizer: tokenizers.Tokenizer,
) -> list[Piece]:
  """Tokens of texts that follow others, without a blank of the tokenizer's.

  Where the tokenizer puts one before each text, a text is encoded behind a
  sentinel, whose tokens are cut off. That is exact if they are the sentinel's
  own and end where it ends: a merge that crosses the border would show.

  Args:
    texts: the texts.
    before: tokens of the text before each; a text keeps its blank where there
      are none.
    tokenizer: the tokenizer.

  Returns:
    The tokens of each, as if the text stood alone if there is no such blank.

  Raises:
    DocumentError: no sentinel is exact.
  """
  found = _pieces(texts, tokenizer)
  left = [i for i, text in enumerate(texts) if text and before[i].ids]
  sentinels = _sentinels(tokenizer) if left else []
  for sentinel in sentinels:
    (alone,) = _pieces([sentinel], tokenizer)
    joined = _pieces([sentinel + texts[i] for i in left], tokenizer)
    behind = [_behind(alone, one, len(sentinel)) for one in joined]
    for i, piece in zip(left, behind, strict=True):
      found[i] = found[i] if piece is None else piece
    left = [i for i, piece in zip(left, behind, strict=True) if piece is None]
  if sentinels and left:
    raise DocumentError(
      f'The completion {texts[left[0]][:40]!r}... has no tokens of its own '
      'behind its prompt, as the tokenizer puts a blank before each text. '
      'Begin it with a blank, or take another tokenizer.',
      left[0],
    )
  return found


def _sentinels(tokenizer: tokenizers.Tokenizer) -> list[str]:
  """The sentinels behind which a text has no blank that it has alone."""

  def seen(text: str) -> str:
    """The characters that the model of the tokenizer reads."""
    if tokenizer.normalizer is not None:
      text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
      return text
    return ''.join(p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))

  letter = 'a'
  apart = {one: seen(one) + seen(letter) for one in SENTINELS}
  return [one for one in SENTINELS if seen(one + letter) != apart[one]]


def _behind(alone: Piece, joined: Piece, size: int) -> Piece | None:
  """Tokens behind a sentinel; None if they are not apart from its own.

  Args:
    alone: tokens of the sentinel.
    joined: tokens of the sentinel and the text behind it.
    size: number of characters of the sentinel.

  Returns:
    The tokens.
  """
  count = len(alone.ids)
  own, rest = joined.offsets[:count], joined.offsets[count:]
  exact = list(joined.ids[:count]) == list(alone.ids)
  exact = exact and all(end <= size for _, end in own)
  if not exact or any(start < size for start, _ in rest):
    return None
  shifted = [(start - size, end - size) for start, end in rest]
  return Piece(joined.ids[count:], shifted)


def _bytes(text: str, piece: Piece) -> np.ndarray:
  """Bytes of UTF-8 that each token of a text stands for, `[n]` int32.

  A token has the characters up to its end that no earlier token has: what a
  tokenizer drops, as blanks, counts for the next token, and at the end of the
  text for the last. Of the tokens that share a character the first has it.
  """
  if not piece.ids:
    return np.zeros(0, np.int32)
  ends = np.maximum.accumulate([end for _, end in piece.offsets])
  ends[-1] = len(text)
  if not text.isascii():
    codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    # A character has one byte, and one more from each of these codes on.
    more = [codes >= least for least in (2**7, 2**11, 2**16)]
    sizes = 1 + np.sum(more, axis=0)
    ends = np.concatenate([[0], np.cumsum(sizes)])[ends]
  return np.diff(ends, prepend=0).astype(np.int32)
