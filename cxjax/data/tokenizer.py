"""Byte-level BPE tokenizers, trained on a corpus or loaded from a file."""

from collections.abc import Iterable
from collections.abc import Sequence
import hashlib
import itertools
import pathlib

from absl import logging
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from cxjax import errors
from cxjax import files
from cxjax.data import tokenizer_patterns

# Accepted names of each special token, in this order of preference.
SPECIAL = {
  'pad': ('[PAD]', '<pad>'),
  'cls': ('[CLS]', '<s>', '[BOS]'),
  'mask': ('[MASK]', '<mask>'),
}
# Names of the tokens that begin and end a text in tokenizers of decoders, the
# preferred ones first.
ENDS = ('</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>')
BEGINS = ('<bos>', '<|begin_of_text|>', '<|endoftext|>')

# Documents, and characters of each, that are searched for special tokens.
SEARCHED, LONGEST = 1_000, 10_000


def train(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Trains a byte-level BPE tokenizer.

  Training of byte-level BPE is reproducible; training of WordPiece, in the same
  library, is not.

  Args:
    documents: training text.
    vocab_size: number of ids, including the special tokens and the 256 bytes.

  Returns:
    The tokenizer.

  Raises:
    UserError: the vocabulary is smaller than that, or larger than the text
      supports.
  """
  special = [names[0] for names in SPECIAL.values()]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  least = len(alphabet) + len(special)
  errors.require(
    vocab_size >= least,
    f'data.vocab_size={vocab_size} must be at least {least}: {len(alphabet)} '
    f'bytes and {len(special)} special tokens.',
  )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=special,
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  tokenizer.train_from_iterator(documents, trainer)
  found = tokenizer.get_vocab_size()
  errors.require(
    found == vocab_size,
    f'data.vocab_size={vocab_size} is larger than the text supports, which '
    f'gives {found} ids. Lower it to at most {found}.',
  )
  return _read_literally(tokenizer)


def load(path: pathlib.Path) -> tokenizers.Tokenizer:
  """Loads a `tokenizer.json`.

  Args:
    path: the file.

  Returns:
    The tokenizer, without truncation and padding.

  Raises:
    UserError: the file is missing, is not a tokenizer, or has a regular
      expression that may take for ever on some text.
  """
  try:
    text = files.read_text(path)
    tokenizer_patterns.require_fast(path, files.parse_json(text))
    tokenizer = tokenizers.Tokenizer.from_str(text)
  except errors.UserError:
    raise
  except Exception as error:  # The library raises nothing narrower.
    raise errors.UserError(
      f'{path} is no tokenizer ({error}). It must be the tokenizer.json of the '
      'library tokenizers.'
    ) from error
  # Tokenizers of models often truncate and pad; here a document stays whole.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return _read_literally(tokenizer)


def _read_literally(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """Makes a '[MASK]' in a document six characters, not the special token."""
  tokenizer.encode_special_tokens = True
  return tokenizer


def warn_of_special(
  tokenizer: tokenizers.Tokenizer, documents: Iterable[str]
) -> None:
  """Warns once if a document has the characters of a special token.

  Args:
    tokenizer: the tokenizer.
    documents: the beginnings of the first `SEARCHED` of them are searched.
  """
  added = tokenizer.get_added_tokens_decoder().values()
  names = [token.content for token in added if token.special and token.content]
  for document in itertools.islice(documents, SEARCHED):
    start = document[:LONGEST]
    if found := next((name for name in names if name in start), None):
      ids = tokenizer.encode(found, add_special_tokens=False).ids
      # Unigram takes it for a piece like others.
      as_token = tokenizer.token_to_id(found) in ids
      logging.warning(
        'A document has %r, a special token of the tokenizer. In a text and in '
        'a prompt it is read as %s: leave it out unless that is meant.',
        found,
        'the token' if as_token else 'these characters, not as the token',
      )
      return


def save(tokenizer: tokenizers.Tokenizer, path: pathlib.Path) -> None:
  """Writes a `tokenizer.json`."""
  files.write_text(path, tokenizer.to_str(pretty=True))


def fingerprint(tokenizer: tokenizers.Tokenizer) -> str:
  """Hash of the serialized tokenizer, 16 hexadecimal digits."""
  return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def num_ids(tokenizer: tokenizers.Tokenizer, rows: int | None = None) -> int:
  """Number of ids of a tokenizer, one more than the largest.

  Args:
    tokenizer: the tokenizer.
    rows: number of ids of a model, above which added special tokens do not
      count. Gemma 3 has one for images, and no row for it in models of text. A
      text that spells it out is read as characters by a tokenizer of `load`.

  Returns:
    The number.
  """
  ids = set(tokenizer.get_vocab().values())
  if rows is not None:
    added = tokenizer.get_added_tokens_decoder()
    ids -= {i for i, token in added.items() if token.special and i >= rows}
  return max(ids, default=-1) + 1


def token_id(
  tokenizer: tokenizers.Tokenizer, name: str, field: str, known: Sequence[str]
) -> int:
  """Id of a special token.

  Args:
    tokenizer: the tokenizer.
    name: name of the token; '' takes the first of `known` that there is, a
      special token rather than a word.
    field: field of a config that gives the name, for the message.
    known: usual names.

  Returns:
    The id.

  Raises:
    UserError: the tokenizer has no such token.
  """
  asked = (name,) if name else tuple(known)
  there = present(tokenizer, asked)
  errors.require(
    bool(there),
    f'The tokenizer has no token {" or ".join(map(repr, asked))}. Set '
    f'{field} to one of its special tokens.',
  )
  return next(iter(there.values()))


def present(
  tokenizer: tokenizers.Tokenizer, names: Sequence[str]
) -> dict[str, int]:
  """Ids of those of some names that a tokenizer has, special tokens first.

  Gemma's has `<s>` as a tag of HTML, beside its special token `<bos>`.
  """
  added = tokenizer.get_added_tokens_decoder().values()
  special = {token.content for token in added if token.special}
  # Half of a surrogate pair is no UTF-8, hence in no token.
  is_half = lambda character: '\ud800' <= character <= '\udfff'
  known = [name for name in names if not any(map(is_half, name))]
  ids = {name: tokenizer.token_to_id(name) for name in known}
  order = sorted(ids, key=lambda name: name not in special)
  return {name: at for name in order if (at := ids[name]) is not None}


def special_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Ids of the special tokens 'pad', 'cls' and 'mask'.

  Raises:
    UserError: the tokenizer lacks one of them.
  """
  ids = {}
  for role, names in SPECIAL.items():
    found = [i for i in map(tokenizer.token_to_id, names) if i is not None]
    errors.require(
      bool(found),
      f'The tokenizer has no {role} token; it must have one of '
      f'{", ".join(names)}.',
    )
    ids[role] = found[0]
  return ids
