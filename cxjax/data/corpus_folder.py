"""The folder in which a run keeps its tokenizer and the record of its text.

The record is written first and names the fingerprints of both: what is there
without it belongs to somebody else, and what a crash left out is made again and
compared.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from cxjax import errors
from cxjax import files

RECORD = 'corpus.json'
TOKENIZER = 'tokenizer.json'
DOCUMENTS = 'documents.json'
# Files of a model or of a run; a tokenizer beside them would become theirs.
OTHERS = (TOKENIZER, DOCUMENTS, 'config.json', 'vocab.txt')


def read(folder: pathlib.Path) -> Mapping[str, Any] | None:
  """Record of the corpus that a folder keeps.

  Args:
    folder: the folder; it may be missing.

  Returns:
    The record, with 'corpus' and 'tokenizer', fingerprints; None if a corpus
    may be kept there.

  Raises:
    UserError: the folder is not one of a corpus, or the record is damaged.
  """
  # Before the record: the first process of a run may just be writing both.
  others = [name for name in OTHERS if (folder / name).exists()]
  path = folder / RECORD
  if path.exists():
    record = files.read_json(path)
    errors.require(
      isinstance(record, Mapping) and {'corpus', 'tokenizer'} <= record.keys(),
      f'{path} is no record of a text that a run kept. Choose another '
      'data.folder.',
    )
    return dict(record)
  errors.require(
    not others,
    f'data.folder={folder} has {", ".join(others)} and no {RECORD}: no text is '
    'kept there. Choose another folder, or remove what a run left that was '
    'killed; for a tokenizer of your own set data.tokenizer.',
  )
  return None


def require_same(
  folder: pathlib.Path, record: Mapping[str, Any], tokenizer: str
) -> None:
  """Raises UserError if a folder was made with another tokenizer.

  Args:
    folder: the folder.
    record: its record.
    tokenizer: fingerprint of the tokenizer of this run.
  """
  before = record['tokenizer']
  errors.require(
    before == tokenizer,
    f'{folder} was made with another tokenizer (fingerprint {before} then, '
    f'{tokenizer} now). Restore that one, or choose another workdir.',
  )
