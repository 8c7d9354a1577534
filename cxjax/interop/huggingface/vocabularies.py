"""Vocabularies of two models: the ids that both have."""

import pathlib
from typing import TypeAlias

import tokenizers

from cxjax import checks
from cxjax import errors
from cxjax.interop.huggingface import config as config_lib
from cxjax.interop.huggingface import reader

# A folder of a model, or its tokenizer.
Source: TypeAlias = pathlib.Path | str | tokenizers.Tokenizer
SHOWN = 3  # Ids of a message.


def shared_vocabulary(teacher: Source, student: Source) -> int:
  """Counts the first ids that stand for the same tokens in two models.

  Models often have more rows than their tokenizer has tokens, as padding to a
  round number: GPT-2 has 50,257 tokens and models of 50,304 rows. Give the
  number to `cxjax.plan(vocab=...)`, which compares the outputs on these ids.
  Special tokens above the rows of a folder's model do not count.

  Args:
    teacher: the folder of the teacher, or its tokenizer.
    student: the folder of the student, or its tokenizer.

  Returns:
    The number of ids, one more than the last one that both have.

  Raises:
    UserError: an id up to there stands for different tokens, or for none in one
      of the two (the message names the first three); a folder has no tokenizer,
      or one with more tokens than its model, apart from special tokens.
  """
  theirs, ours = _tokens(teacher, 'teacher'), _tokens(student, 'student')
  count = min(max(theirs, default=-1), max(ours, default=-1)) + 1
  errors.require(
    count > 0, 'A tokenizer has no tokens. Take the one of the model.'
  )
  differ = [i for i in range(count) if theirs.get(i) != ours.get(i)]
  shown = '; '.join(
    f'{i} is {_shown(theirs.get(i))} in the teacher and '
    f'{_shown(ours.get(i))} in the student'
    for i in differ[:SHOWN]
  )
  more = f'; and {len(differ) - SHOWN:,} more' if len(differ) > SHOWN else ''
  errors.require(
    not differ,
    f'The tokenizers differ in {len(differ):,} of the first {count:,} ids: '
    f'{shown}{more}. Outputs of other vocabularies cannot be compared: train '
    'the student with the tokenizer of the teacher.',
  )
  return count


def _tokens(source: Source, role: str) -> dict[int, str]:
  """The tokens of a vocabulary, by their ids."""
  errors.require(
    isinstance(source, pathlib.Path | str | tokenizers.Tokenizer),
    f'The {role} is a {type(source).__name__}; it must be the folder of a '
    'model, or a tokenizers.Tokenizer.',
  )
  if isinstance(source, tokenizers.Tokenizer):
    return {i: token for token, i in source.get_vocab().items()}
  found = reader.tokenizer(source).get_vocab()
  _, config = config_lib.read(checks.path('folder', source))
  # Special tokens above the rows have no output to compare.
  return {i: token for token, i in found.items() if i < config['vocab_size']}


def _shown(token: str | None) -> str:
  """A token in a message."""
  return 'none' if token is None else repr(token)[:40]
