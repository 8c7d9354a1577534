"""Tokenizers in a model's folder: `tokenizer.json`, or BERT's `vocab.txt`."""

import pathlib

import tokenizers

from cxjax import errors
from cxjax import files
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.interop.huggingface import opening

# Names of each special token in tokenizers of others, the preferred one first.
SPECIAL = {
  **tokenizer_lib.SPECIAL,
  'sep': ('[SEP]', '</s>', '[EOS]'),
  'unk': ('[UNK]', '<unk>'),
}
# The same of decoders: without 'eos' the sampler of transformers never ends.
CAUSAL = {
  **SPECIAL,
  'bos': ('<s>', '[BOS]', *tokenizer_lib.BEGINS),
  'eos': (*tokenizer_lib.ENDS, '[EOS]'),
}
# Share of the rows of a model, and rows, that padding may be at most.
PADDING, FEW = 0.1, 1_024
IDS = ('pad', 'bos', 'eos')  # Roles of which `config.json` has the ids.


def read(folder: pathlib.Path) -> tokenizers.Tokenizer:
  """The tokenizer of a folder; it neither truncates nor pads.

  Raises:
    UserError: the folder has no tokenizer, or a damaged one.
  """
  path, words = folder / 'tokenizer.json', folder / 'vocab.txt'
  errors.require(
    path.exists() or words.exists(),
    f'{folder} has no tokenizer.json and no vocab.txt. Copy one there from the '
    'model.',
  )
  found = path if path.exists() else words
  opening.require_regular(found, opening.MOST)
  return tokenizer_lib.load(path) if path.exists() else _wordpiece(words)


def require_size(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
  """Raises a UserError unless every id is below `vocab_size`, by some padding.

  Models often have more rows than their tokenizer has tokens, as padding. Those
  that are known have up to 2,385 of 102,400. Added special tokens may be above
  the rows: Gemma 3 has one for images.
  """
  found = len(tokenizer.get_vocab())
  last = tokenizer_lib.num_ids(tokenizer, vocab_size) - 1
  word = tokenizer.id_to_token(last) if last >= 0 else None
  errors.require(
    0 <= last < vocab_size,
    f'The tokenizer has {found} tokens and the model {vocab_size}'
    + (f': the id of {word!r} is {last}' if last >= 0 else '')
    + '. Take the tokenizer that the model was trained with.',
  )
  errors.require(
    vocab_size - last <= max(PADDING * vocab_size, FEW),
    f'The tokenizer has {found} tokens and the model {vocab_size}, far more '
    'than padding. Take the tokenizer that the model was trained with.',
  )


def require_rows(
  tokenizer: tokenizers.Tokenizer, vocab_size: int, causal: bool
) -> None:
  """Raises a UserError for a special token of a role that has no row.

  Args:
    tokenizer: the tokenizer.
    vocab_size: number of ids of the model.
    causal: whether the model predicts the next token.
  """
  for role, (name, at) in _special(tokenizer, causal).items():
    errors.require(
      at < vocab_size,
      f'The {role} token {name!r} has the id {at}, and the model the ids 0 to '
      f'{vocab_size - 1}. Take the tokenizer that the model was trained with.',
    )


def _wordpiece(path: pathlib.Path) -> tokenizers.Tokenizer:
  """BERT's WordPiece tokenizer of a `vocab.txt`."""
  try:
    vocab = tokenizers.models.WordPiece.read_file(str(path))
  except Exception as error:  # The library raises nothing narrower.
    raise errors.UserError(
      f'{path} cannot be read ({error}). It must have a token a line.'
    ) from error
  missing = [t for t in ('[UNK]', '[CLS]', '[SEP]') if t not in vocab]
  errors.require(
    not missing,
    f'{path} lacks {", ".join(missing)}. It must be the vocabulary of BERT.',
  )
  settings = path.with_name('tokenizer_config.json')
  found = opening.read_object(settings) if settings.exists() else {}
  names = ('do_lower_case', 'strip_accents', 'tokenize_chinese_chars')
  for name in names:
    errors.require(
      found.get(name) is None or isinstance(found[name], bool),
      f'{settings} has {name}={found.get(name)!r}; it must be true or false. '
      'Restore the file.',
    )
  lower, accents, chinese = map(found.get, names)
  made = tokenizers.BertWordPieceTokenizer(
    vocab,
    lowercase=lower is not False,
    strip_accents=accents,
    handle_chinese_chars=chinese is not False,
  )
  made = tokenizers.Tokenizer.from_str(made.to_str())
  made.encode_special_tokens = True
  return made


def special_ids(
  tokenizer: tokenizers.Tokenizer, causal: bool = False
) -> dict[str, int]:
  """Fields of `config.json` with the ids of special tokens.

  Args:
    tokenizer: the tokenizer.
    causal: whether the model predicts the next token.

  Returns:
    That of the padding; of a causal model also those that begin and end a text.
  """
  found = _special(tokenizer, causal)
  return {f'{role}_token_id': found[role][1] for role in IDS if role in found}


def require_padding(tokenizer: tokenizers.Tokenizer, pad_token: int) -> None:
  """Raises a UserError for another padding token than the model's.

  Args:
    tokenizer: the tokenizer.
    pad_token: id of the token that takes no position; -1 if all take one.
  """
  found = special_ids(tokenizer).get('pad_token_id', pad_token)
  errors.require(
    pad_token in (-1, found),
    f'The padding token of the tokenizer has the id {found}, and the positions '
    f'of the model leave out the id {pad_token}. Take the tokenizer that the '
    'model was trained with.',
  )


def _special(
  tokenizer: tokenizers.Tokenizer, causal: bool
) -> dict[str, tuple[str, int]]:
  """Names and ids of a tokenizer's special tokens; roles may be missing."""
  found = {}
  for role, names in (CAUSAL if causal else SPECIAL).items():
    there = tokenizer_lib.present(tokenizer, names)
    if there:
      found[role] = next(iter(there.items()))
  return found


def write(
  folder: pathlib.Path,
  tokenizer: tokenizers.Tokenizer,
  max_length: int,
  causal: bool = False,
) -> None:
  """Writes `tokenizer.json` and `tokenizer_config.json`.

  Args:
    folder: folder of the model.
    tokenizer: the tokenizer.
    max_length: length of the longest sequence that the model reads.
    causal: whether the model predicts the next token; then the tokens that
      begin and end a text are named too.

  Raises:
    UserError: a file cannot be written.
  """
  tokenizer_lib.save(tokenizer, folder / 'tokenizer.json')
  special = _special(tokenizer, causal)
  settings = {
    # The class of transformers that reads any `tokenizer.json`.
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': max_length,
    **{f'{role}_token': name for role, (name, _) in special.items()},
  }
  files.write_json(folder / 'tokenizer_config.json', settings, place='folder')
