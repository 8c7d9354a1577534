"""Documents in records: objects of JSON, rows of .csv, .tsv and .parquet."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import csv
import dataclasses
import importlib
import io
import json
from typing import Any
from typing import Self

from cxjax import arguments
from cxjax import errors

PARQUET = ('.parquet',)
TEXT = 'text'
ROWS = 1_024  # Rows of a .parquet file that are read at a time.


class Prompted(str):
  """A document that begins with a prompt, which is read and not learned.

  Attributes:
    prompt: number of characters of the prompt.
    where: file and record, for messages; '' if they are not known.
  """

  prompt: int
  where: str

  def __new__(cls, prompt: str, completion: str, where: str = '') -> Self:
    """Joins a prompt and its completion, as they are."""
    joined = super().__new__(cls, prompt + completion)
    joined.prompt, joined.where = len(prompt), where
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


def is_object(line: str) -> bool:
  """True if a line is an object of JSON, as in a file of JSON lines."""
  line = line.strip()
  if not (line.startswith('{') and line.endswith('}')):
    return False
  try:
    return isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False


def read_json(path: str, text: str, fields: Fields) -> Iterator[str]:
  """Documents of a .json file: lines of objects, a list of them, or one.

  Args:
    path: the file, for messages.
    text: its content.
    fields: the fields to read.

  Yields:
    The documents that are not blank.

  Raises:
    UserError: it is none of these, or as for `read_jsonl`.
  """
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    errors.require(
      not text.lstrip().startswith('['),
      f'{path} is no list in JSON: {getattr(error, "msg", None) or error}. '
      'Restore it, or give one object in each line.',
    )
    yield from read_jsonl(path, text, fields)
    return
  if not isinstance(value, list):
    yield from _document(value, fields, path)
    return
  for number, record in enumerate(value, 1):
    yield from _document(record, fields, f'{path}, item {number}')


def read_csv(path: str, text: str, fields: Fields) -> Iterator[str]:
  """Documents of the rows of a .csv file, whose first row names the columns.

  Args:
    path: the file, for messages.
    text: its content; fields with commas or lines in them are quoted.
    fields: the columns to read.

  Yields:
    The documents that are not blank.

  Raises:
    UserError: a column is missing or comes twice, a row has another length, or
      a quotation has no end; names the row.
  """
  # The limit is one of the process: 131,072 characters unless it is set.
  limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
  try:
    lines = io.StringIO(text, newline='')
    rows = list(filter(None, csv.reader(lines, strict=True)))
  except csv.Error as error:
    raise errors.UserError(
      f'{path} is no CSV file: {error}. Quote fields that have commas, lines '
      'or quotes in them, and double those quotes.'
    ) from error
  finally:
    csv.field_size_limit(limit)
  yield from _rows(path, rows, fields)


def read_tsv(path: str, text: str, fields: Fields) -> Iterator[str]:
  """Documents of the rows of a .tsv file, as `read_csv`, without quotations.

  Args:
    path: the file, for messages.
    text: its content.
    fields: the columns to read.

  Yields:
    The documents that are not blank.

  Raises:
    UserError: a column is missing or comes twice, a row has another length, or
      a field begins with a quote, which some programs read as a part of it.
  """
  rows = [
    line.removesuffix('\r').split('\t') for line in text.split('\n') if line
  ]
  header = rows[0] if rows else []
  read = [i for i, name in enumerate(header) if name in fields.names]
  for number, row in enumerate(rows if read else ()):
    errors.require(
      not any(row[i].startswith('"') for i in read if i < len(row)),
      f'{path}, row {number}: a field begins with ", which may be a part of it '
      'or not. Save the file as .csv or .jsonl.',
    )
  yield from _rows(path, [row for row in rows if row != ['']], fields)


def _rows(path: str, rows: list[list[str]], fields: Fields) -> Iterator[str]:
  """Yields the documents of the rows of a table, of which the first names."""
  if not rows:
    return
  header, *rows = rows
  for name in fields.names:
    require_field(name, header, path)
    errors.require(
      header.count(name) == 1,
      f'{path} has {header.count(name)} columns {name!r}. Rename the others.',
    )
  for number, row in enumerate(rows, 1):
    where = f'{path}, row {number}'
    errors.require(
      len(row) == len(header),
      f'{where} has {len(row)} fields, and the first row names {len(header)} '
      'columns. Correct the file.',
    )
    yield from _document(dict(zip(header, row, strict=True)), fields, where)


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
    'data.prompt_field and data.completion_field, or leave it out.',
  )


def _document(record: Any, fields: Fields, where: str) -> Iterator[str]:
  """Yields the document of a record, unless it is blank."""
  errors.require(
    isinstance(record, Mapping),
    f'{where} is {arguments.json_kind(record)}; it must be an object with the '
    f'field {fields.names[0]!r}.',
  )
  parts = [_text(record, name, where) for name in fields.names]
  if not ''.join(parts).strip():
    return
  # A blank between prompt and completion belongs to one of them.
  if fields.prompt:
    yield Prompted(parts[0], parts[1], where)
  else:
    yield parts[0].strip()


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
  require_field(name, record, where)
  value = record[name]
  errors.require(
    isinstance(value, str),
    f'{where}: the field {name!r} is {arguments.json_kind(value)}'
    + (f', {str(value)[:40]!r}' if value is not None else '')
    + '; it must be a string.',
  )
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can escape half a character.
    raise errors.UserError(
      f'{where}: the field {name!r} is no Unicode text: the character '
      f'{error.start + 1} is half of a pair. Correct it.'
    ) from error
  require_no_nul(value, f'{where}: the field {name!r}')
  return str(value)


def require_no_nul(text: str, where: str) -> None:
  """Raises UserError for the character NUL, which no text has."""
  errors.require(
    '\0' not in text,
    f'{where} is no text: the character {text.find(chr(0)) + 1} is NUL. '
    'Correct it.',
  )


# By the end of a file's name; the readers of a text.
READERS: dict[str, Callable[[str, str, Fields], Iterator[str]]] = {
  '.jsonl': read_jsonl,
  '.ndjson': read_jsonl,
  '.json': read_json,
  '.csv': read_csv,
  '.tsv': read_tsv,
}
KINDS = (*READERS, *PARQUET)  # Files that have records.
