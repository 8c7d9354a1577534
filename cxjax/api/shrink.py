"""A student cut out of its teacher: fewer blocks, channels, heads, neurons."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any
from typing import TypeAlias

import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.data import user_batches
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import tensors as tensors_lib
from cxjax.models import activation_sizes
from cxjax.models import block_removal
from cxjax.models import decoder
from cxjax.models import slicing
from cxjax.models import token_inputs
from cxjax.models import transformer
from cxjax.parallel import reception

# Batches that are read, of an iterator that may never end.
MOST_BATCHES = 64
CHOICES = ('even', 'least_harm')
# Inputs of a batch that are read; the others are of training.
INPUTS = ('tokens', 'mask', 'segments', 'position_ids')
Pairs: TypeAlias = tuple[tuple[str, str], ...]


def shrink(
  teacher: tuple[slicing.Model, types.Params],
  *,
  depth: int | None = None,
  width: int | None = None,
  heads: int | None = None,
  kv_heads: int | None = None,
  mlp: int | None = None,
  batches: Iterable[Any] | None = None,
  choose: str | Sequence[int] = 'even',
) -> tuple[slicing.Model, types.Params, Pairs]:
  """Cuts a student out of a teacher.

  Channels, heads and neurons with the largest activations stay, as in Minitron:
  their mean absolute value over the tokens of the batches. The channels are the
  same everywhere, and each norm of the residual stream counts alike in their
  choice; heads and neurons are chosen for each block. Queries keep the key and
  value of their group. A norm of fewer channels divides by more, and its scale
  makes up for that. Sizes that are not given stay; if all stay, so does the
  output.

  Args:
    teacher: a `Decoder` or `Transformer` and its variables, as
      `huggingface.read` returns.
    depth: number of blocks.
    width: number of channels. A `Transformer`, whose heads divide its width,
      keeps as many heads as fill it; a `Decoder` keeps its heads.
    heads: number of query heads. Whole groups of those that share a key and a
      value stay, or else as many of every group as fit.
    kv_heads: number of key and value heads, each with as many query heads; None
      for the number that `heads` says.
    mlp: hidden width of the MLPs.
    batches: calibration: `[B, L]` token ids, or dicts with 'tokens' and, where
      the teacher reads them, 'mask', 'segments' and 'position_ids'; or batches
      of `distill` with such inputs. At most 64 are read. Not needed for blocks
      that are chosen evenly or by number.
    choose: 'even', the first and the last block and those at equal distances
      between them; 'least_harm', which removes one block after the other, each
      time the one whose removal changes the output least; or the numbers of the
      blocks, ascending.

  Returns:
    The student, its variables in the dtypes of the teacher's, float32 in place
    of float16, and pairs of the teacher's and the student's layers, for
    `layers` of `plan`.

  Raises:
    UserError: there is more of something than the teacher has; sizes that do
      not fit the heads, or that `huggingface.write` could not write while it
      can the teacher; the batches are needed and missing, are empty, or lack
      tokens of the teacher's vocabulary.

  References:
    Muralidharan et al. "Minitron", 2024. https://arxiv.org/abs/2407.14679.
  """
  module, params = _teacher(teacher)
  have = slicing.sizes(module)
  blocks = _blocks(module, depth, choose)
  depth = depth if blocks is None else len(blocks)
  want = _sizes(module, depth, width, heads, kv_heads, mlp)
  found = [] if batches is None else _inputs(module, batches)
  fewer = want != dataclasses.replace(have, depth=want.depth)
  errors.require(
    bool(found) or not (blocks is None or fewer),
    'batches are missing, which say what stays: give some batches of tokens, '
    "as batches=[{'tokens': ids}].",
  )
  if blocks is None:
    blocks = block_removal.least_harmful(module, params, found, want.depth)
  student = _student(module, blocks, want)
  scores = {}
  if fewer:
    scores = activation_sizes.measure(module, params, found)
    _require_finite(scores)
  kept = slicing.choose(module, blocks, want, scores)
  if want.width < have.width:
    ratios = activation_sizes.norm_ratios(module, params, found, kept.width)
    params = slicing.rescaled(module, params, ratios, want.width)
  return student, slicing.start(module, params, kept), _pairs(blocks)


def outline(
  module: Any,
  *,
  depth: int | None = None,
  width: int | None = None,
  heads: int | None = None,
  kv_heads: int | None = None,
  mlp: int | None = None,
) -> tuple[slicing.Model, Pairs]:
  """The student and the pairs of layers of `shrink`, without its variables.

  Args:
    module: the teacher.
    depth: number of blocks, as for `shrink`; they are chosen evenly.
    width: number of channels, as for `shrink`.
    heads: number of query heads, as for `shrink`.
    kv_heads: number of key and value heads, as for `shrink`.
    mlp: hidden width of the MLPs, as for `shrink`.

  Returns:
    The student and the pairs.

  Raises:
    UserError: sizes that `shrink` refuses.
  """
  _require_known(module)
  blocks = _blocks(module, depth, 'even')
  assert blocks is not None
  want = _sizes(module, depth, width, heads, kv_heads, mlp)
  return _student(module, blocks, want), _pairs(blocks)


def _student(
  module: slicing.Model, blocks: Sequence[int], want: slicing.Sizes
) -> slicing.Model:
  """The student of some sizes.

  Raises:
    UserError: a Hugging Face folder can hold the teacher, and none the student.
  """
  student = slicing.smaller(module, slicing.first(blocks, want))
  try:
    family = base.family_of(module)
  except errors.UserError:
    return student  # Nobody expects a folder.
  try:
    base.family_of(student)
  except errors.UserError as error:
    raise errors.UserError(
      f'width={want.width} and heads={want.heads} of {want.head_size}: a '
      f'Hugging Face folder of a {family.model_type} holds the teacher, and '
      f'none such a student: {family.refusal(student)} Give a width that is a '
      f'multiple of heads, or heads of {want.head_size} that fill it.'
    ) from error
  return student


def _pairs(blocks: Sequence[int]) -> Pairs:
  """Names of blocks of the teacher, and of the student's that they become."""
  return tuple((f'block{i}', f'block{at}') for at, i in enumerate(blocks))


def _require_known(module: Any) -> None:
  """Raises UserError for a module that has other parts."""
  kinds = (transformer.Transformer, decoder.Decoder)
  errors.require(
    isinstance(module, kinds),
    f'shrink cuts a cxjax.Transformer or a cxjax.Decoder; this is a '
    f'{type(module).__name__}'
    + (
      ': give (module.encoder, its variables).'
      if isinstance(getattr(module, 'encoder', None), kinds)
      else '. Make a smaller one, and train it from its own start.'
    ),
  )


def _teacher(teacher: Any) -> tuple[slicing.Model, types.Params]:
  """The module and the variables; raises UserError for others."""
  errors.require(
    isinstance(teacher, tuple | list) and len(teacher) == 2,
    f'teacher is a {type(teacher).__name__}; it must be a pair of a module and '
    'its variables, as cxjax.huggingface.read returns.',
  )
  module, params = teacher
  _require_known(module)
  errors.require(
    isinstance(params, Mapping) and 'params' in params,
    f'The variables of the teacher are a {type(params).__name__}; they must be '
    "its {'params': ...}.",
  )
  params = reception.received('the variables', dict(params))
  tensors_lib.require_same(
    'The variables do not fit the teacher',
    tensors_lib.shapes(params),
    tensors_lib.shapes(tensors_lib.variables_of(module)),
    ('given', 'in the module'),
    'Give the variables of this module.',
  )
  return module, params


def _blocks(
  module: slicing.Model, depth: int | None, choose: Any
) -> tuple[int, ...] | None:
  """Numbers of the blocks; None if their removal has to be tried."""
  count = module.depth
  if depth is not None:
    depth = _size('depth', depth, count)
  if isinstance(choose, str):
    errors.lookup('choose', choose, dict.fromkeys(CHOICES))
    depth = count if depth is None else depth
    if depth == count:
      return tuple(range(count))
    if choose == 'least_harm':
      return None
    places = np.linspace(0, count - 1, depth)
    return tuple(int(at) for at in np.floor(places + 0.5))
  try:
    numbers = [arguments.integer('choose', i, 0, count - 1) for i in choose]
  except (TypeError, errors.UserError) as error:
    raise errors.UserError(
      f'choose={choose!r} must be {" or ".join(map(repr, CHOICES))}, or '
      f'numbers of blocks from 0 to {count - 1}.'
    ) from error
  errors.require(
    bool(numbers) and all(a < b for a, b in itertools.pairwise(numbers)),
    f'choose={choose!r} must be numbers of blocks that ascend, at least one.',
  )
  errors.require(
    depth in (None, len(numbers)),
    f'depth={depth} and choose={choose!r}, which are {len(numbers)} blocks: '
    'leave depth out.',
  )
  errors.require(
    numbers[0] == 0 or not getattr(module, 'embeddings_norm', False),
    f'choose={choose!r} must begin with block 0: it alone has no norm before '
    'its attention, because the embeddings are normalized.',
  )
  return tuple(numbers)


def _size(name: str, value: Any, most: int) -> int:
  """A size of the student; raises UserError if the teacher has less."""
  size = arguments.integer(name, value, 1)
  errors.require(
    size <= most,
    f'{name}={size}: the teacher has {most}, and the student is cut out of it. '
    f'Give at most {most}.',
  )
  return size


def _sizes(
  module: slicing.Model,
  depth: int | None,
  width: int | None,
  heads: int | None,
  kv_heads: int | None,
  mlp: int | None,
) -> slicing.Sizes:
  """The sizes of the student, all resolved."""
  have = slicing.sizes(module)
  pick = lambda name, value, most: (
    most if value is None else _size(name, value, most)
  )
  depth = pick('depth', depth, have.depth)
  width = pick('width', width, have.width)
  mlp = pick('mlp', mlp, have.mlp)
  size = have.head_size
  if isinstance(module, transformer.Transformer):
    errors.require(
      width % size == 0,
      f'width={width} is no multiple of {size}, the width of a head of the '
      f'teacher. Give {width // size * size or size}, for example.',
    )
    fill = width // size
    count = fill if heads is None else _size('heads', heads, have.heads)
    errors.require(
      count == fill,
      f'heads={count} of {size} are {count * size} wide and width={width}: '
      f'give width={count * size}, or heads={fill}.',
    )
    errors.require(
      kv_heads in (None, fill),
      f'kv_heads={kv_heads}: each of the {fill} heads has a key and a value of '
      'its own. Leave kv_heads out.',
    )
    return slicing.Sizes(depth, width, fill, fill, mlp, size)
  count = pick('heads', heads, have.heads)
  groups = _groups(count, kv_heads, have)
  return slicing.Sizes(depth, width, count, groups, mlp, size)


def _groups(heads: int, kv_heads: int | None, have: slicing.Sizes) -> int:
  """Number of key and value heads that serve some query heads.

  Raises:
    UserError: no number of groups has as many heads in each, or that which is
      asked for has not.
  """
  most = have.heads // have.kv_heads
  if kv_heads is not None:
    groups = _size('kv_heads', kv_heads, have.kv_heads)
    errors.require(
      heads % groups == 0 and heads // groups <= most,
      f'heads={heads} and kv_heads={groups} do not fit the teacher, whose '
      f'{have.heads} heads are {have.kv_heads} groups of {most}: give kv_heads '
      f'that divide heads, with at most {most} heads for each.',
    )
    return groups
  fits = {
    groups * each: groups
    for each in range(1, most + 1)
    for groups in range(1, have.kv_heads + 1)
  }
  errors.require(
    heads in fits,
    f'heads={heads} do not fit the teacher, whose {have.heads} heads are '
    f'{have.kv_heads} groups of {most}, each with its key and value. Give one '
    f'of {", ".join(map(str, sorted(fits)))}.',
  )
  return fits[heads]


def _inputs(module: slicing.Model, batches: Any) -> list[dict[str, np.ndarray]]:
  """The inputs of the calibration batches; raises UserError for others."""
  errors.require(
    not isinstance(batches, Mapping | str)
    and hasattr(batches, '__iter__')
    and getattr(batches, 'ndim', 1) > 0,
    f'batches is a {type(batches).__name__}; it must be a list of batches, as '
    "[{'tokens': ids}].",
  )
  found = []
  for i, batch in enumerate(itertools.islice(batches, MOST_BATCHES)):
    with errors.about(f'batches[{i}]'):
      found.append(_input(module, batch))
  errors.require(bool(found), 'batches are empty: give at least one.')
  errors.require(
    any(x['mask'].any() for x in found if 'mask' in x)
    or any('mask' not in x for x in found),
    "No token counts: the 'mask' of all batches is False everywhere.",
  )
  return found


def _input(module: slicing.Model, batch: Any) -> dict[str, np.ndarray]:
  """The input of one batch."""
  x = user_batches.checked(batch, classes=None)['x']
  if not isinstance(x, Mapping):
    x = {'tokens': x}
  errors.require(
    'tokens' in x,
    f"there are no 'tokens' among {', '.join(map(repr, x))}: give [B, L] ids "
    'under that name.',
  )
  checked = token_inputs.checked(x, module.max_length)
  x = {name: np.asarray(checked[name]) for name in INPUTS if name in checked}
  tokens = x['tokens']
  for name, leaf in x.items():
    errors.require(
      leaf.shape == tokens.shape and leaf.size > 0,
      f'{name!r} is {list(leaf.shape)} for tokens {list(tokens.shape)}: they '
      'must be equal, with at least one token.',
    )
  low, high = int(tokens.min()), int(tokens.max())
  errors.require(
    low >= 0 and high < module.vocab_size,
    f'tokens go from {low} to {high}; the teacher has the ids 0 to '
    f'{module.vocab_size - 1}. Take the tokenizer of the teacher.',
  )
  if 'mask' in x:
    x['mask'] = x['mask'] > 0
  return x


def _require_finite(scores: Mapping[str, np.ndarray]) -> None:
  """Raises UserError for activations that are not finite."""
  bad = [name for name, score in scores.items() if not np.isfinite(score).all()]
  errors.require(
    not bad,
    f'Activations of the teacher are not finite on the batches, first at '
    f'{bad[:1]}. Check its parameters, or compute in float32.',
  )
