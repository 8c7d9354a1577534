"""Teachers from folders of Hugging Face, which teach as they are."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any
from typing import TypeAlias

from absl import logging
from flax import traverse_util
import jax
import ml_collections
import tokenizers

from cxjax import errors
from cxjax import files
from cxjax import types
from cxjax.interop import huggingface
from cxjax.interop.huggingface import opening
from cxjax.models import base as models
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import run_spec
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict

# Files that a folder of a model has, and one of a teacher that was trained here
# has not.
MARKS = ('*.safetensors', '*.safetensors.index.json', 'tokenizer.json')
# Fields of the config.json of a teacher that was trained here.
OWN = ('task', 'teacher')
TOKENIZER = 'tokenizer.json'
LEAST = 0.9  # Share of a model's ids that its tokenizer has; the rest pads.


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model in a folder of Hugging Face.

  Attributes:
    folder: the folder.
    module: the model.
    shapes: shapes of its variables, in the dtypes of the file.
    loaded: its variables on the devices, by their layout, once they are read.
  """

  folder: pathlib.Path
  module: Any
  shapes: types.Params
  loaded: dict[run_spec.Layout, types.Params] = dataclasses.field(
    default_factory=dict, compare=False
  )

  def model(self, task: Any) -> Any:
    """Returns the model, if it can teach a task.

    Args:
      task: the task.

    Raises:
      UserError: the model predicts the next token and the task does not, or the
        reverse; or it does not read an input of the task.
    """
    models.require_task(self.module, task)
    errors.require(
      getattr(task, 'causal', False) or not self.module.causal,
      f'The teacher in {self.folder} predicts the next token, and task '
      f'{type(task).__name__} does not. Choose causal_text.',
    )
    return self.module

  def teacher(self, params: types.Params | None = None) -> teacher_lib.Teacher:
    """The teacher with its variables, or with shapes in their place."""
    return teacher_lib.Teacher(
      apply=self.module.apply,
      params=self.shapes if params is None else params,
      layers=self.module.layers,
      load=self._checkpoint,
      available=params is not None,
    )

  def load(self, layout: run_spec.Layout) -> types.Params:
    """Reads the variables, one tensor after another, onto the devices.

    Args:
      layout: where they lie.

    Returns:
      The variables, in the dtypes of the file.
    """

    def place(path: str, array: Any) -> jax.Array:
      tree = {'params': traverse_util.unflatten_dict({path: array}, sep='/')}
      (placed,) = jax.tree.leaves(
        mesh_lib.place(tree, layout.mesh, layout.teacher)
      )
      return placed

    if layout not in self.loaded:
      logging.info('Reads the teacher of %s.', self.folder)
      _, self.loaded[layout] = huggingface.read(self.folder, place)
    return self.loaded[layout]

  def _checkpoint(self, at: int) -> types.Params:
    raise errors.UserError(
      f'{self.folder} holds one model, without the checkpoint {at} of its '
      'training. Leave checkpoint out.'
    )


def find(folder: str) -> pathlib.Path | None:
  """Returns a folder if it is one of Hugging Face, and not of a run."""
  path = pathlib.Path(folder)
  if not folder or not path.is_dir():
    return None
  try:
    config = files.parse_json(files.read_text(path / 'config.json'))
  except (OSError, ValueError):
    config = None
  if isinstance(config, Mapping):
    return None if all(name in config for name in OWN) else path
  return path if any(any(path.glob(mark)) for mark in MARKS) else None


def open_teacher(config: Config) -> Pretrained | None:
  """Reads what a config has to know of its pretrained teacher.

  Args:
    config: config of an experiment; its `teacher.folder` becomes absolute, so
      that the run can be read from any folder. If it is one of Hugging Face,
      the vocabulary of its data becomes that of the model, and its tokenizer
      that of the folder, with the tokens that begin and end a document.

  Returns:
    The teacher; None if it is trained.

  Raises:
    UserError: the folder cannot be read, has no head, or the task reads no
      text, or another tokenizer.
  """
  if config.teacher.folder:
    config.teacher.folder = str(pathlib.Path(config.teacher.folder).absolute())
  folder = find(config.teacher.folder)
  if folder is None:
    return None
  module, shapes = huggingface.read(
    folder, lambda _, array: types.shape_struct(array.shape, array.dtype)
  )
  errors.require(
    module.num_classes > 0,
    f'teacher.folder={folder} has no head of a language model: it predicts no '
    'tokens. Choose a model with one.',
  )
  _settle(config.data, folder, module)
  errors.require(
    config.data.length <= module.max_length,
    f'data.length={config.data.length} is more than the {module.max_length} '
    f'positions of the teacher in {folder}. Lower it.',
  )
  return Pretrained(folder, module, shapes)


def _settle(data: Config, folder: pathlib.Path, module: Any) -> None:
  """Sets the fields of a data block that a pretrained teacher decides."""
  path = str(folder / TOKENIZER)
  errors.require(
    'tokenizer' in data,
    f'teacher.folder={folder} is a language model, and the task reads no text. '
    'Choose causal_text or text.',
  )
  errors.require(
    data.tokenizer in ('', path),
    f'data.tokenizer={data.tokenizer}, but the teacher in {folder} reads its '
    'own tokenizer. Leave data.tokenizer out.',
  )
  errors.require(
    pathlib.Path(path).exists(),
    f'{folder} has no {TOKENIZER}. Copy it there from the model, or write the '
    'folder with huggingface.write(..., tokenizer).',
  )
  tokenizer = huggingface.tokenizer(folder)
  size = tokenizer.get_vocab_size()
  errors.require(
    size >= LEAST * module.vocab_size,
    f'The tokenizer in {folder} has {size} ids and the model '
    f'{module.vocab_size}, more than padding explains. Take the tokenizer that '
    'the model was trained with.',
  )
  if data.vocab_size != module.vocab_size:
    logging.info(
      'data.vocab_size is %d, that of the teacher.', module.vocab_size
    )
  with data.unlocked():
    data.tokenizer, data.padded_vocab = path, True
    data.vocab_size = module.vocab_size
    end = data.get('end_token') or _special(folder, tokenizer, 'eos')
    begin = data.get('begin_token') or _special(folder, tokenizer, 'bos')
    data.begin_token, data.end_token = begin or end, end


def _special(
  folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, role: str
) -> str:
  """Name of the token that begins or ends a text; '' if none is named."""
  path = folder / 'tokenizer_config.json'
  settings = opening.read_object(path) if path.exists() else {}
  named = settings.get(f'{role}_token')
  if isinstance(named, Mapping):
    named = named.get('content')
  if not isinstance(named, str):
    found = opening.read_object(folder / 'config.json').get(f'{role}_token_id')
    first = found[0] if isinstance(found, list) and found else found
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    named = words.get(first) if isinstance(first, int) else None
  if not named or tokenizer.token_to_id(named) is None:
    return ''
  return named
