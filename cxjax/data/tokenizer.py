"""Byte-level BPE: trained on a corpus, or read from a file."""

from collections.abc import Iterable
import hashlib
import pathlib

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from cxjax import errors
from cxjax import files

# What each special token may be called in a tokenizer from elsewhere.
SPECIAL = {
  'pad': ('[PAD]', '<pad>'),
  'cls': ('[CLS]', '<s>', '[BOS]'),
  'mask': ('[MASK]', '<mask>'),
}


def train(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer of the documents.

  Byte-level BPE because its training is reproducible: that of WordPiece, in the
  same library, is not.

  Args:
    documents: the text.
    vocab_size: number of ids, special tokens and the 256 bytes included.

  Returns:
    The tokenizer.

  Raises:
    UserError: a size below those, or above what the text has pairs for.
  """
  special = [names[0] for names in SPECIAL.values()]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  least = len(alphabet) + len(special)
  errors.require(
    vocab_size >= least,
    f'data.vocab_size={vocab_size} must be at least {least}: every byte and '
    f'{len(special)} special tokens.',
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
    f'data.vocab_size={vocab_size} is larger than the text supports: it has '
    f'pairs for {found}.',
  )
  return _literal(tokenizer)


def load(path: pathlib.Path) -> tokenizers.Tokenizer:
  """A tokenizer from its `tokenizer.json`.

  Raises:
    UserError: no such file, or another kind of file.
  """
  try:
    tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
  except Exception as error:  # The library raises nothing narrower.
    raise errors.UserError(
      f'{path} is no tokenizer ({error}). It must be the tokenizer.json of the '
      'library tokenizers.'
    ) from error
  # Files of models often cut and fill; here a document is whole.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return _literal(tokenizer)


def _literal(tokenizer):
  """The tokenizer, made to read a '[MASK]' in a text as six characters."""
  tokenizer.encode_special_tokens = True
  return tokenizer


def save(tokenizer: tokenizers.Tokenizer, path: pathlib.Path) -> None:
  """Writes a `tokenizer.json`."""
  files.write_text(path, tokenizer.to_str(pretty=True))


def fingerprint(tokenizer: tokenizers.Tokenizer) -> str:
  """Of all that it does."""
  return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def special_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Ids of 'pad', 'cls' and 'mask'.

  Raises:
    UserError: it has none of the names of one of them.
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
