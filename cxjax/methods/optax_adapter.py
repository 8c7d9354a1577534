"""Adapters of optax transformations, which train a tree of parameters.

What a transformation needs is found out by calling it with shapes: the
arguments of its update, `optax.LookaheadParams`, a tree without gaps. One that
cannot train the tree raises its error there, before anything is trained.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import inspect
import itertools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from cxjax import errors
from cxjax.methods import averages
from cxjax.methods import masks
from cxjax.parallel import partition

# Arguments of an update, as optax names them: the loss, its gradients, and the
# loss of the same batch as a function of the parameters.
VALUES = ('value', 'grad', 'value_fn')
# Other names of that function (`sophia`), and its gradient (`sam`).
MORE = ('obj_fn', 'grad_fn')
Loss = Callable[[Any], jax.Array]
SHOWN = 5  # Names of parameters in a message.


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An optimizer, called as it needs to train a tree of parameters.

  Attributes:
    tx: the optimizer.
    extra: names of the arguments that its update gets.
    pairs: it takes `optax.LookaheadParams`.
    whole: it takes the whole tree, with gradients of 0 where nothing is
      trained, because it cannot do with gaps.
    mask: mask of the stage, if the tree comes without what is no parameter
      (`masks.pruned`); None if it comes with it.
    dtypes: dtypes of the leaves of the state, if an update changes them.
  """

  tx: Any
  extra: tuple[str, ...] = ()
  pairs: bool = False
  whole: bool = False
  mask: masks.Mask = None
  dtypes: tuple[Any, ...] = ()

  def init(self, trainable: Any, frozen: Any = None) -> Any:
    """State of optax for the trainable parameters."""
    state = self._init(trainable, frozen)
    if not self.dtypes:
      return state
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(
      structure, list(map(jnp.asarray, leaves, self.dtypes))
    )

  def update(
    self,
    grads: Any,
    state: Any,
    trainable: Any,
    frozen: Any,
    iterate: Any,
    value: jax.Array,
    loss: Loss,
  ) -> tuple[Any, Any, Any]:
    """One update.

    Args:
      grads: gradients at `iterate`.
      state: state of optax.
      trainable: the parameters to evaluate.
      frozen: parameters that are not trained.
      iterate: where the gradients are taken; `trainable`, or of its structure.
      value: the loss at `iterate`.
      loss: the loss as a function of a tree like `trainable`.

    Returns:
      The parameters to evaluate, where to take the next gradients, and the
      state.
    """
    updates, state = self._call(
      grads, state, trainable, frozen, iterate, value, loss
    )
    if self.pairs:
      trainable = optax.apply_updates(
        trainable, self._own(trainable, updates.slow)
      )
      updates = updates.fast
    iterate = optax.apply_updates(iterate, self._own(iterate, updates))
    if not self.pairs:
      seen = self._seen(iterate, frozen)
      trainable = self._own(iterate, averages.evaluation_params(state, seen))
    return trainable, iterate, state

  def _init(self, trainable: Any, frozen: Any) -> Any:
    with _quiet():
      return self.tx.init(self._seen(trainable, frozen))

  def _call(
    self,
    grads: Any,
    state: Any,
    trainable: Any,
    frozen: Any,
    iterate: Any,
    value: jax.Array,
    loss: Loss,
  ) -> tuple[Any, Any]:
    """The update of optax."""
    seen = self._seen(iterate, frozen)
    zeros = jax.tree.map(jnp.zeros_like, _floating(frozen))
    grads = self._seen(grads, zeros)
    fun = lambda params: loss(self._own(iterate, params))
    known = {
      'value': value,
      'grad': grads,
      'value_fn': fun,
      'obj_fn': fun,
      'grad_fn': lambda params, *_: jax.grad(fun)(params),
    }
    if self.pairs:
      seen = optax.LookaheadParams(seen, self._seen(trainable, frozen))
    extra = {name: known[name] for name in self.extra}
    updates, state = self.tx.update(grads, state, seen, **extra)
    return updates, jax.tree.map(jnp.asarray, state)  # Numbers of Python.

  def _seen(self, trainable: Any, frozen: Any) -> Any:
    """The tree that the optimizer sees."""
    tree = (
      masks.merge(trainable, _floating(frozen)) if self.whole else trainable
    )
    return tree if self.mask is None else masks.pruned(tree, self.mask)

  def _own(self, like: Any, seen: Any) -> Any:
    """A tree like the one that the optimizer sees as one like `trainable`."""
    if self.mask is not None:
      seen = masks.restored(seen, self.mask)
    return _only(like, seen)

  def _try(
    self, trainable: Any, frozen: Any, state: Any = None
  ) -> tuple[Any, ...]:
    """The state before and after an update of some loss, and the updates."""
    square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    loss = lambda tree: sum(map(square, jax.tree.leaves(tree)), jnp.zeros(()))
    if state is None:
      state = self._init(trainable, frozen)
    updates, after = self._call(
      trainable, state, trainable, frozen, trainable, jnp.ones(()), loss
    )
    return state, after, updates

  def tried(self, trainable: Any, frozen: Any) -> 'Adapter':
    """This adapter, if the optimizer trains a tree in this way.

    Args:
      trainable: shapes of the parameters.
      frozen: shapes of those that are not trained.

    Returns:
      The adapter, with `pairs` as the state asks for.

    Raises:
      Exception: whatever the optimizer raises.
      UserError: its state or its updates are of another form than they must.
    """
    state = jax.eval_shape(self._init, trainable, frozen)
    pairs = bool(averages.parts(state, optax.LookaheadState))
    _refuse(state, pairs)
    adapter = dataclasses.replace(self, pairs=pairs)
    state, after, updates = jax.eval_shape(adapter._try, trainable, frozen)
    _require_same('state', state, after)
    if _dtypes(state) != _dtypes(after):
      # As in a loop of Python, where the second update sees these dtypes.
      adapter = dataclasses.replace(adapter, dtypes=_dtypes(after))
      again = jax.eval_shape(adapter._try, trainable, frozen, after)[1]
      errors.require(
        _dtypes(after) == _dtypes(again),
        'The optimizer changes the dtypes of its state with every update.',
      )
    seen = jax.eval_shape(adapter._seen, trainable, frozen)
    wanted = optax.LookaheadParams(seen, seen) if adapter.pairs else seen
    _require_same('updates', wanted, updates)
    jax.eval_shape(averages.evaluation_params, state, seen)
    return adapter


def adapt(
  tx: Any, trainable: Any, frozen: Any = None, mask: masks.Mask = None
) -> Adapter:
  """Finds out how an optimizer trains a tree of parameters.

  Args:
    tx: an optax transformation.
    trainable: the trainable parameters, or their shapes; None elsewhere.
    frozen: the other parameters; None elsewhere.
    mask: mask of the stage, which says what is no parameter; None if all are.

  Returns:
    The adapter.

  Raises:
    UserError: it cannot train them; the message has its own error.
  """
  trainable, frozen = jax.eval_shape(lambda tree: tree, (trainable, frozen))
  raised: list[Exception] = []
  gaps = bool(jax.tree.leaves(_floating(frozen)))
  trees = (mask, None) if masks.has_state(mask) else (None,)
  wholes = (False, True) if gaps else (False,)
  for own, whole, extra in itertools.product(trees, wholes, _candidates(tx)):
    try:
      adapter = Adapter(tx, extra, whole=whole, mask=own)
      return adapter.tried(trainable, frozen)
    # Whatever code of a user raises.
    except Exception as error:
      raised.append(error)
  known = [error for error in raised if isinstance(error, errors.UserError)]
  if known:
    raise known[0]
  text = ' '.join(str(raised[0]).split())
  raise errors.UserError(
    'The optimizer cannot train these parameters: '
    f'{type(raised[0]).__name__}: {text[:300].rstrip(".")}. It sees the tree '
    f"of the student's parameters{_top(trainable)}, with None for those that a "
    'stage does not train, or of the regressors; its update gets '
    f'{", ".join(VALUES)} if it asks.'
  ) from raised[0]


def _top(tree: Any) -> str:
  """The names at the top of a tree of parameters, for a message."""
  if not isinstance(tree, Mapping) or not tree or 'params' in tree:
    return ''
  names = list(map(repr, tree))
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  return (
    f', which has {", ".join(names[:SHOWN])}{more} at its top, and no level '
    "'params' above"
  )


def reads_loss(adapter: Adapter, tree: Any) -> bool:
  """Returns whether an optimizer cannot do without the loss."""
  if not adapter.extra:
    return False
  shapes = jax.eval_shape(lambda tree: tree, tree)
  try:
    dataclasses.replace(adapter, extra=()).tried(shapes, None)
  except Exception:  # Whatever code of a user raises.
    return True
  return False


def _candidates(tx: Any) -> Iterator[tuple[str, ...]]:
  """Sets of arguments that an update may take, the likely and large first."""
  names = (*VALUES, *MORE)
  parameters = inspect.signature(tx.update).parameters
  kinds = [parameter.kind for parameter in parameters.values()]
  if inspect.Parameter.VAR_KEYWORD not in kinds:
    yield tuple(name for name in names if name in parameters)
    return
  yield VALUES
  for size in range(len(names), -1, -1):
    for found in itertools.combinations(names, size):
      if found != VALUES:
        yield found


def _refuse(state: Any, pairs: bool) -> None:
  """Raises UserError for optimizers that need another training step."""
  errors.require(
    not averages.parts(
      state, optax.contrib.DifferentiallyPrivateAggregateState
    ),
    'The optimizer needs the gradient of every example '
    '(differentially_private_aggregate, dpsgd), and a step has only that of '
    'the mean loss. Choose another optimizer.',
  )
  errors.require(
    not (pairs and averages.averages(state)),
    'The optimizer has lookahead together with schedule_free or sam: which '
    'parameters to evaluate is not known. Choose one of them.',
  )


def _require_same(what: str, wanted: Any, found: Any) -> None:
  """Raises UserError unless two trees of shapes have the same form."""
  shapes, others = map(_shapes, (wanted, found))
  differ = [
    name
    for name in {**shapes, **others}
    if shapes.get(name) != others.get(name)
  ]
  structures = [jax.tree.structure(tree) for tree in (wanted, found)]
  if structures[0] == structures[1] and not differ:  # type: ignore[operator]
    return
  where = ''
  if differ:
    name = differ[0]
    form = lambda shapes: shapes.get(name, 'missing')
    where = f': {name!r} is {form(others)} and must be {form(shapes)}'
  raise errors.UserError(
    f'The optimizer does not keep the form of its {what}{where}. A measurement '
    'is no optimizer, and a state must have its structure from the start.'
  )


def _shapes(tree: Any) -> dict[str, str]:
  """Shapes of the leaves of a tree, by their paths."""
  return {
    partition.leaf_name(path): str(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _dtypes(tree: Any) -> tuple[Any, ...]:
  return tuple(leaf.dtype for leaf in jax.tree.leaves(tree))


def _floating(tree: Any) -> Any:
  """The floating-point leaves of a tree; None for the others."""
  real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  return jax.tree.map(lambda leaf: leaf if real(leaf) else None, tree)


def _only(like: Any, tree: Any) -> Any:
  """The leaves of `tree` where `like` has one; None elsewhere."""
  return jax.tree.map(
    lambda leaf, other: None if leaf is None else other,
    like,
    tree,
    is_leaf=lambda leaf: leaf is None,
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Drops the warning of `optax.lookahead` about parameters without a pair."""
  logger = logging.getLogger('absl')
  keep = lambda record: 'no attribute `fast`' not in record.getMessage()
  logger.addFilter(keep)
  try:
    yield
  finally:
    logger.removeFilter(keep)
