"""Text of TensorFlow Datasets (tfds), read by index as a sequence."""

from collections.abc import Sequence
import dataclasses
import importlib
import socket
from typing import Any

from cxjax import errors
from cxjax.data import records


class Documents(Sequence):
  """One text field of the examples of a dataset; cannot be sliced."""

  def __init__(self, examples: Any, field: str):
    """Reads nothing yet.

    Args:
      examples: a data source of tfds, with a length and an index.
      field: name of the field.
    """
    self._examples, self._field = examples, field

  def __len__(self) -> int:
    """Number of examples."""
    return len(self._examples)

  def __getitem__(self, index: int) -> str:  # type: ignore[override]
    """The text of an example.

    Raises:
      UserError: the text is not UTF-8, or has the character NUL.
    """
    if not 0 <= index < len(self):
      raise IndexError(index)
    value = self._examples[index][self._field]
    where = f'Example {index} of the dataset, field {self._field!r},'
    try:  # A mocked dataset yields strings.
      text = value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
      raise errors.UserError(
        f'{where} is not UTF-8: byte 0x{value[error.start]:02x} at offset '
        f'{error.start}. Remove it from the dataset.'
      ) from error
    records.require_no_nul(text, where)
    return text


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The training split of a dataset.

  Attributes:
    documents: its text.
    name: name of the dataset, without its version.
    full_name: name with configuration and version.
    identity: everything that tells it from other datasets, except the text.
  """

  documents: Documents
  name: str
  full_name: str
  identity: tuple[str, ...]


def load(name: str, field: str, folder: str) -> Dataset:
  """Opens the training split of a dataset, and downloads it if necessary.

  Args:
    name: `NAME` or `NAME/CONFIG`.
    field: name of a text field; '' chooses 'text' if there is one, and the
      first text field otherwise.
    folder: folder of prepared datasets; '' is the default of tfds.

  Returns:
    The dataset.

  Raises:
    UserError: the dataset is unknown, cannot be downloaded or read, has no
      training split, or has no such text field.
  """
  builder = _builder(name, folder)
  fields = [
    key
    for key, feature in builder.info.features.items()
    if type(feature).__name__ == 'Text'
  ]
  errors.require(
    bool(fields),
    f'data.source: the dataset {name} has no text field. Choose another one.',
  )
  field = field or ('text' if 'text' in fields else fields[0])
  errors.lookup(f'text field of {name}', field, dict.fromkeys(fields))
  if not builder.is_prepared():
    _prepare(builder, name)
  errors.lookup(f'split of {name}', 'train', builder.info.splits)
  try:
    examples = builder.as_data_source(split='train')
  except (NotImplementedError, ValueError) as error:
    raise errors.UserError(
      f'{name} cannot be read: {str(error).splitlines()[0]} It must be '
      'prepared with --file_format=array_record.'
    ) from error
  info, split = builder.info, builder.info.splits['train']
  identity = (info.full_name, field, split.num_examples, split.num_bytes)
  return Dataset(
    documents=Documents(examples, field),
    name=info.name,
    full_name=info.full_name,
    identity=tuple(map(str, identity)),
  )


def import_tfds() -> Any:
  """Imports the package tensorflow_datasets, which takes half a second."""
  return importlib.import_module('tensorflow_datasets')


def _builder(name: str, folder: str) -> Any:
  tfds = import_tfds()
  kwargs = {'data_dir': folder} if folder else {}
  try:
    return tfds.builder(name, file_format='array_record', **kwargs)
  except tfds.core.DatasetNotFoundError as error:
    raise errors.UserError(
      f'tfds has no dataset {name!r}, and data.tfds_folder={folder!r} holds '
      'none of that name. The names are at tensorflow.org/datasets; prepare '
      'Wikipedia first, see experiments/wikipedia_bert.py; books is no longer '
      'distributed, read a copy of your own with files:GLOB.'
    ) from error
  except ValueError as error:
    line = str(error).splitlines()[0]
    raise errors.UserError(
      f'{name} cannot be opened: {line} A dataset must be prepared with '
      '--file_format=array_record.'
    ) from error


def _prepare(builder: Any, name: str) -> None:
  """Downloads a dataset if there is a network."""
  advice = (
    'On a machine with network and TensorFlow run: tfds build '
    f'{name} --file_format=array_record, and copy its folder to '
    'data.tfds_folder.'
  )
  errors.require(
    _has_network(),
    f'{name} is not in {builder.data_path.parent}, and there is no network to '
    f'download it. {advice}',
  )
  try:
    builder.download_and_prepare()
  except Exception as error:  # Downloads fail in many ways.
    line = str(error).splitlines()[0]
    raise errors.UserError(
      f'{name} cannot be downloaded: {line} {advice}'
    ) from error


def _has_network() -> bool:
  """Returns whether the host of most datasets answers within 5 seconds."""
  try:
    socket.create_connection(('storage.googleapis.com', 443), timeout=5).close()
  except OSError:
    return False
  return True
