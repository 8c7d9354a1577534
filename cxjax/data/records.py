"""Documents in records: the lines of a .jsonl file, the rows of a .parquet."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import importlib
import io
import json
from typing import Any
from typing import Self

from cxjax import errors

JSONL = ('.jsonl', '.ndjson')
PARQUET = ('.parquet',)
TEXT = 'text'
ROWS = 1_024  # Rows of a .parquet file that are read at a time.


class Prompted(str):
  """A document that begins with a prompt, which is read and not learned.

  Attributes:
    prompt: number of characters of the prompt.
  """

  prompt: int

  def __new__(cls, prompt: str, completion: str) -> Self:
    """Joins a prompt and its completion, as they are."""
    joined = super().__new__(cls, prompt + completion)
    joined.prompt = len(prompt)
    return joined


@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of the fields of a record that make a document.

  Attributes:
    text: field of the whole text; not read if there is a prompt.
    prompt: field of the prompt; '' for none.
    completion: field of what follows the prompt; '' for none.
  """

  text: str = TEXT
  prompt: str = ''
  completion: str = ''

  def __post_init__(self) -> None:
    """Raises UserError for a prompt without a completion of its own."""
    errors.require(
      bool(self.prompt) == bool(self.completion),
      f'data.prompt_field={self.prompt!r} and data.completion_field='
      f'{self.completion!r}: give both, or neither.',
    )
    errors.require(
      not self.prompt or self.prompt != self.completion,
      f'data.prompt_field and data.completion_field are both {self.prompt!r}: '
      'a completion would repeat its prompt. Name two fields.',
    )
    errors.require(
      bool(self.text) or bool(self.prompt),
      "data.field='' names no field. Give the one that holds the text.",
    )

  @property
  def names(self) -> tuple[str, ...]:
    """The fields that are read."""
    return (self.prompt, self.completion) if self.prompt else (self.text,)

  @property
  def default(self) -> bool:
    """True if nobody chose a field."""
    return self == Fields()


def read_jsonl(path: str, text: str, fields: Fields) -> Iterator[str]:
  """Documents of JSON lines, in their order.

  Args:
    path: the file, for messages.
    text: its content; blank lines are skipped.
    fields: the fields to read.

  Yields:
    The documents that are not blank.

  Raises:
    UserError: a line is no JSON object, lacks a field, or has one that is no
      string; names the file and the line.
  """
  # Not splitlines: U+2028 ends a line of text, and may stand in a JSON string.
  for number, line in enumerate(text.split('\n'), 1):
    if line.strip():
      where = f'{path}, line {number}'
      yield from _document(_parsed(line, where), fields, where)


def _parsed(line: str, where: str) -> Any:
  try:
    return json.loads(line)
  except (ValueError, RecursionError) as error:
    reason = getattr(error, 'msg', None) or str(error)
    raise errors.UserError(
      f'{where} is not JSON: {reason}. Each line must be one object, as '
      '{"text": "..."}.'
    ) from error


def read_parquet(path: str, content: bytes, fields: Fields) -> Iterator[str]:
  """Documents of the rows of a Parquet file, in their order.

  Args:
    path: the file, for messages.
    content: its bytes.
    fields: the columns to read.

  Yields:
    The documents that are not blank.

  Raises:
    UserError: the package pyarrow is not installed; the file is damaged, lacks
      a column, or has a value that is no string; names the row.
  """
  try:
    parquet = importlib.import_module('pyarrow.parquet')
  except ImportError as error:
    raise errors.UserError(
      f'{path} is a Parquet file. Run pip install pyarrow to read it.'
    ) from error
  try:
    file = parquet.ParquetFile(io.BytesIO(content))
    columns = file.schema_arrow.names
    for name in fields.names:
      require_field(name, columns, path)
    number = 0
    for batch in file.iter_batches(ROWS, columns=list(fields.names)):
      for record in batch.to_pylist():
        number += 1
        yield from _document(record, fields, f'{path}, row {number}')
  except errors.UserError:
    raise
  except Exception as error:
    # pyarrow raises its own classes, and OSError for a damaged page.
    raise errors.UserError(
      f'{path} is no Parquet file that pyarrow can read: '
      f'{str(error).splitlines()[0] if str(error) else error!r}. Restore it.'
    ) from error


def require_field(name: str, fields: Any, where: str) -> None:
  """Raises UserError, naming those that are there, unless a field is there."""
  there = ', '.join(map(repr, list(fields)[:10])) or 'none'
  errors.require(
    name in fields,
    f'{where} has no field {name!r}; it has {there}. Set data.field, or '
    'data.prompt_field and data.completion_field.',
  )


def _document(record: Any, fields: Fields, where: str) -> Iterator[str]:
  """Yields the document of a record, unless it is blank."""
  errors.require(
    isinstance(record, Mapping),
    f'{where} is a {type(record).__name__}; it must be an object with the '
    f'field {fields.names[0]!r}.',
  )
  parts = [_text(record, name, where) for name in fields.names]
  if not ''.join(parts).strip():
    return
  # A blank between prompt and completion belongs to one of them.
  yield Prompted(*parts) if fields.prompt else parts[0].strip()


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
  require_field(name, record, where)
  value = record[name]
  errors.require(
    isinstance(value, str),
    f'{where}: the field {name!r} is a {type(value).__name__}, '
    f'{str(value)[:40]!r}; it must be a string.',
  )
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can escape half a character.
    raise errors.UserError(
      f'{where}: the field {name!r} is no Unicode text: the character '
      f'{error.start + 1} is half of a pair. Correct it.'
    ) from error
  return str(value)
