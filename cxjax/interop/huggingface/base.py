"""Families of Hugging Face models: what a family declares, and their registry.

A family maps the fields of its `config.json` to those of a module of cxjax, and
each parameter of the module to a tensor of `model.safetensors`. A new family is
one file that calls `register`, and its import in `__init__.py`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeAlias

from absl import logging
from flax import traverse_util
import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import errors

Config: TypeAlias = dict[str, Any]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
# Arrays, or tensors of a file, which are read when they are used.
Tensors: TypeAlias = Mapping[str, Any]
# Moves a parameter, by its path, to where it is kept.
Place: TypeAlias = Callable[[str, np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter of a module and the tensor that holds it in a file.

  Attributes:
    path: path of the parameter in the module, as in 'block0/query/kernel'.
    tensor: name of the tensor.
    transposed: whether the file holds the transpose, as PyTorch's linear layers
      do.
    part: `(i, n)`: the parameter is part `i` of `n` equal parts of the tensor
      along the last axis, after the transposition.
    added: name of a second tensor, whose first row is added to every row of the
      parameter; '' if there is none.
    dropped: number of first rows of the tensor that the parameter lacks; they
      are written as zeros.
  """

  path: str
  tensor: str
  transposed: bool = False
  part: tuple[int, int] = (0, 1)
  added: str = ''
  dropped: int = 0


class Positive(float):
  """Kind of a field whose number is above 0: 0 means nothing, or divides."""


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of models: how its config and its tensors map to a module.

  Attributes:
    model_type: `model_type` of its `config.json`.
    module_type: class of the modules that it can hold.
    sizes: names of config fields by the name of the module's field; each is a
      required whole number of at least 1.
    fixed: the only supported value of each of these config fields, which is
      also the value of a field that is absent.
    defaults: values of other optional fields, checked to be of that kind: a
      whole number of at least 1, or a number of at least 0.
    select: `(tensors, config) -> tensors`: those of a file that belong to the
      module, under the names of the table.
    module: `(config, tensors) -> module`.
    parameters: `module -> table` of its parameters.
    constants: `config -> tensors` of the file that hold no parameter.
    refusal: `module -> reason` why the family cannot hold a module; '' if it
      can.
    config: `module -> config`, the inverse of `module`.
    complete: `(tensors, module) -> tensors`: all tensors of a file, under the
      names that transformers reads.
    optional: kind and value of other optional fields, as `(int, 4)`; each may
      be null. A bool is a flag, an int a whole number of at least 1, a float a
      number of at least 0, or above 0 if it is `Positive`; `str`, `list` and
      `dict` are themselves.
    known: names of further fields, which change no output or which `module`
      reads and checks. Any other field is refused, apart from some that change
      no output in any family. None allows every field.
    architectures: names of the classes of transformers that can be read; ()
      for any.
    asked: whether a module is written as this family only if it is asked for.
  """

  model_type: str
  module_type: type
  sizes: Mapping[str, str]
  fixed: Mapping[str, Any]
  defaults: Mapping[str, int | float | bool]
  select: Callable[[Tensors, Config], Tensors]
  module: Callable[[Config, Tensors], Any]
  parameters: Callable[[Any], Sequence[Parameter]]
  constants: Callable[[Config], Tensors]
  refusal: Callable[[Any], str]
  config: Callable[[Any], Config]
  complete: Callable[[Tensors, Any], Tensors]
  optional: Mapping[str, tuple[type, Any]] = dataclasses.field(
    default_factory=dict
  )
  known: Sequence[str] | None = None
  architectures: Sequence[str] = ()
  asked: bool = False


MOST_BLOCKS = 10_000
FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
  """Adds a family; its `model_type` must be new."""
  checks.instance(Family, 'cxjax.huggingface.Family')('family', family)
  errors.require(
    family.model_type not in FAMILIES,
    f'A family of model_type={family.model_type!r} is registered already. '
    'Choose another name.',
  )
  FAMILIES[family.model_type] = family


def family_of(module: Any, model_type: str = '') -> Family:
  """The family as which a module is written.

  Args:
    module: the module.
    model_type: name of the family; '' for the one that the module names in an
      attribute `family`, or else the first that can hold it.

  Returns:
    The family.

  Raises:
    UserError: no family can hold it, or the named one cannot; says why.
  """
  arguments.text('model_type', model_type, "'mistral'")
  named = model_type or getattr(module, 'family', '')
  if named:
    family = errors.lookup('model_type', named, FAMILIES)
    fits = isinstance(module, family.module_type)
    reason = (
      family.refusal(module)
      if fits
      else f'{named} holds no {type(module).__name__}.'
    )
    errors.require(not reason, reason)
    return family
  families = [
    family
    for family in FAMILIES.values()
    if isinstance(module, family.module_type) and not family.asked
  ]
  reasons = [family.refusal(module) for family in families]
  for family, reason in zip(families, reasons, strict=True):
    if not reason:
      return family
  raise errors.UserError(
    ' '.join(
      f'As {family.model_type}: {reason}'
      for family, reason in zip(families, reasons, strict=True)
    )
    if reasons
    else f'{type(module).__name__} has no Hugging Face layout. Give a '
    'cxjax.Transformer, a Decoder or a SentenceEncoder, or write any model '
    'with cxjax.export.'
  )


def linear(
  path: str, tensor: str, transposed: bool = True
) -> tuple[Parameter, Parameter]:
  """Table rows of a linear layer: its kernel and its bias."""
  return (
    Parameter(f'{path}/kernel', f'{tensor}.weight', transposed),
    Parameter(f'{path}/bias', f'{tensor}.bias'),
  )


def norm(path: str, tensor: str) -> tuple[Parameter, Parameter]:
  """Table rows of a layer norm: its scale and its bias."""
  return (
    Parameter(f'{path}/scale', f'{tensor}.weight'),
    Parameter(f'{path}/bias', f'{tensor}.bias'),
  )


def drop_copy(tensors: dict[str, Any], name: str, other: str) -> None:
  """Removes a tensor that has the values of the one that it is tied to.

  Warns of other values: then they are not tied, as in transformers.
  """
  if {name, other} <= tensors.keys():
    pair = np.asarray(tensors[name]), np.asarray(tensors[other])
    if np.array_equal(*pair):
      del tensors[name]
      return
    logging.warning(
      'The config ties %s to %s, and the file has other values for it: they '
      'are read as they are, untied. Set tie_word_embeddings to false, or save '
      'the model again.',
      name,
      other,
    )


def select_decoder(
  tensors: Tensors,
  config: Config,
  names: tuple[str, str, str],
  buffers: str | tuple[str, ...],
) -> dict[str, Any]:
  """The tensors of a decoder; with a head, those of the trunk have a prefix.

  Buffers are left out, and so is a kernel of the head that equals the token
  embedding, if the config ties them.

  Args:
    tensors: all of a file, some of which have no prefix, as in the first GPT-2.
    config: the config; a class that ends with 'Model' has no head.
    names: the prefix, and names of the head and of the token embedding.
    buffers: ends of the names of buffers.

  Returns:
    The tensors.
  """
  prefix, head, words = names
  named = config.get('architectures')
  bare = not any(name == head or name.startswith(prefix) for name in tensors)
  if named:  # GPT2LMHeadModel has a head, GPT2Model and LlamaModel have none.
    bare = named[0].endswith('Model') and 'LMHead' not in named[0]
  if bare:
    prefix = ''
  selected = {
    name if name == head else prefix + name.removeprefix(names[0]): tensor
    for name, tensor in tensors.items()
    if not name.endswith(buffers) and not (bare and name == head)
  }
  if config['tie_word_embeddings']:
    drop_copy(selected, head, prefix + words)
  return selected


def head_refusal(module: Any) -> str:
  """The reason why no file holds the head of a module; '' if one can."""
  if module.num_classes in (0, module.vocab_size):
    return ''
  return (
    f'num_classes={module.num_classes} is not a head of a language model: it '
    f'must be vocab_size={module.vocab_size}, or 0 with the head left out.'
  )


def to_variables(
  table: Iterable[Parameter],
  tensors: Tensors,
  dtype: Any = np.float32,
  place: Place | None = None,
) -> dict[str, Any]:
  """The variables of a module from the tensors of a file.

  Reads one tensor after another.

  Args:
    table: the parameters of the module.
    tensors: arrays by name, in any floating-point type.
    dtype: dtype of the parameters; None for that of the tensors, with float32
      for float64 and for sums of two tensors.
    place: moves a parameter to where it is kept; None keeps it as it is.

  Returns:
    `{'params': ...}`.

  Raises:
    UserError: a tensor is missing; names it.
  """

  def get(name: str) -> np.ndarray:
    array = np.asarray(errors.lookup('tensor', name, tensors))
    wanted = dtype or array.dtype
    return array.astype(
      np.float32 if wanted == np.float64 else wanted, copy=False
    )

  flat = {}
  for parameter in table:
    array = get(parameter.tensor)
    if parameter.transposed:
      array = array.T
    index, count = parameter.part
    array = np.split(array, count, axis=-1)[index][parameter.dropped :]
    if parameter.added:
      added = get(parameter.added)[:1]
      array = array.astype(np.float32) + added.astype(np.float32)
    array = np.ascontiguousarray(array)
    if place is not None:
      with errors.calling('place'):
        array = place(parameter.path, array)
    flat[parameter.path] = array
  return {'params': traverse_util.unflatten_dict(flat, sep='/')}


def tensor_shapes(
  table: Iterable[Parameter], params: Mapping[str, Any]
) -> Shapes:
  """The shapes of the tensors that `to_tensors` makes.

  Args:
    table: the parameters of the module.
    params: the tree that the table's paths lead into; shapes are enough.

  Returns:
    Shapes by name, without the tensors that are only added to others.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  shapes = {}
  for parameter in table:
    shape = np.shape(flat[parameter.path])
    shape = (*shape[:-1], shape[-1] * parameter.part[1])
    shape = (shape[0] + parameter.dropped, *shape[1:])
    shapes[parameter.tensor] = shape[::-1] if parameter.transposed else shape
  return shapes


@dataclasses.dataclass(frozen=True, eq=False)
class Assembled:
  """A tensor of a file, which is made whenever its values are used.

  Attributes:
    parts: parameters that it is made of, side by side, on any device.
    dropped: number of rows of zeros that come first.
    transposed: whether the file holds the transpose.
  """

  parts: tuple[Any, ...]
  dropped: int = 0
  transposed: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the tensor."""
    *lead, _ = np.shape(self.parts[0])
    shape = (*lead, sum(np.shape(part)[-1] for part in self.parts))
    shape = (shape[0] + self.dropped, *shape[1:])
    return shape[::-1] if self.transposed else shape

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the tensor."""
    return np.dtype(self.parts[0].dtype)

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    """Makes the tensor."""
    del copy  # It may be a view of a parameter.
    arrays = [np.asarray(part) for part in self.parts]
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    if self.dropped:
      whole = np.pad(whole, ((self.dropped, 0), (0, 0)))
    whole = whole.T if self.transposed else whole
    return whole if dtype is None else whole.astype(dtype)


def to_tensors(
  table: Iterable[Parameter], params: Mapping[str, Any]
) -> dict[str, Any]:
  """The tensors of a file, in the dtypes of the parameters of a module.

  Args:
    table: the parameters of the module, the parts of a tensor in order.
    params: the tree of arrays that the table's paths lead into.

  Returns:
    Tensors by name, each made when it is used, without those that are only
    added to others.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  tensors: dict[str, Assembled] = {}
  for parameter in table:
    before = tensors.get(parameter.tensor, Assembled(()))
    tensors[parameter.tensor] = Assembled(
      (*before.parts, flat[parameter.path]),
      parameter.dropped,
      parameter.transposed,
    )
  return tensors
