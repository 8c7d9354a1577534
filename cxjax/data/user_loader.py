"""A loader of the user, read in one thread.

Whatever is done with it, `iter`, `next`, its state and its end, is done in that
thread: a connection to a database may know one thread alone. What it raises is
one line with the number of the batch.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
import types as builtin_types
from typing import Any
from typing import Self

from absl import flags
from absl import logging

from cxjax import errors
from cxjax.data import conform
from cxjax.data import iterator_state
from cxjax.data import reader_thread

END = object()


class UserLoader:
  """Batches that a user gives, started again when they end.

  Attributes:
    thread: the thread in which all methods but `first` and the end of the
      context must be called.
    taken: number of batches that `read` has returned.
  """

  def __init__(
    self,
    batches: Any,
    what: str = '',
    thread: reader_thread.ReaderThread | None = None,
  ) -> None:
    """Reads nothing yet.

    Args:
      batches: a list, or anything that can be iterated, once or again.
      what: name of the argument, for messages; '' is the training batches.
      thread: thread of another loader, to share; None starts one of its own.

    Raises:
      UserError: it cannot be iterated, or is one text or dict.
    """
    self._prefix = what and f'{what}: '
    errors.require(
      (hasattr(batches, '__iter__') or hasattr(batches, '__getitem__'))
      and not isinstance(batches, str | bytes | Mapping | type),
      f'{self._prefix}The batches are a {type(batches).__name__}: '
      + (
        'call it, and give what it returns.'
        if callable(batches) and not isinstance(batches, type)
        else 'give something that can be iterated, as a list of batches.'
      ),
    )
    self._batches = batches
    self._iterator: Any = None
    self._ahead: list[Any] = []  # The first batch, once it is looked at.
    self._before: Any = None  # The loader's own state before that batch.
    self.taken = 0
    self.thread = thread or reader_thread.ReaderThread()

  def __enter__(self) -> Self:
    """Returns the loader."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: builtin_types.TracebackType | None,
  ) -> None:
    """Ends the thread; closes the iterator, in the thread.

    An iterator that the user made is left as it is unless an error is raised:
    another run may go on with it.
    """
    self.thread.close(lambda: self.close(failed=kind is not None))

  def first(self) -> Any:
    """Returns the first batch, which `read` will return again."""
    return self.thread.call(self._first)

  def read(self, needed: float = math.inf) -> Any:
    """Returns the next batch.

    Args:
      needed: number of batches that the run takes, for messages.

    Returns:
      The batch as the user gives it, valid until the next call.

    Raises:
      UserError: there is no batch, or the loader raises.
    """
    ahead = self._ahead
    item = ahead.pop() if ahead else self._next(needed, again=True)
    self.taken += 1
    return item

  def once(self) -> Iterator[Any]:
    """Yields the batches once, to the end; raises like `read`."""
    while (item := self._next(math.inf, again=False)) is not END:
      self.taken += 1
      yield item

  def state(self) -> dict[str, Any]:
    """State as JSON: the number of batches read, and the loader's own state.

    Returns:
      `{'taken': int, 'own': ...}`; 'own' is None if the iterator has no
      `get_state` and `set_state`.

    Raises:
      UserError: the own state cannot be saved.
    """
    own = self._before if self._ahead else self._own_state()
    return {'taken': self.taken, 'own': own}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Restores a state.

    An iterator with a state is set to it; any other is fast-forwarded.

    Args:
      state: returned by `state`.

    Raises:
      UserError: the batches end before the state, or the state is that of
        another loader.
    """
    if self.taken:  # An iterator at its start may not allow a second one.
      self._iterator, self._ahead = None, []
    self.taken, own = 0, state['own']
    if own is None:
      for _ in range(state['taken']):
        self.read(state['taken'])
      return
    self._ahead = []
    with self._reported('The state of the loader cannot be restored'):
      iterator = self._opened()
      errors.require(
        hasattr(iterator, 'set_state'),
        'The run was begun with a loader that has a state (set_state), and '
        f'this {type(iterator).__name__} has none. Give the same loader.',
      )
      iterator.set_state(iterator_state.decode(own))
    self.taken = state['taken']

  def close(self, failed: bool) -> None:
    """Closes a generator, or another iterator that can be closed.

    Args:
      failed: whether to close even an iterator that the user made.
    """
    own = self._iterator is not self._batches
    close = getattr(self._iterator, 'close', None)
    if not callable(close) or not (own or failed):
      return
    try:
      close()
    except Exception as error:
      logging.warning('The loader raises as it is closed: %s', error)

  def _first(self) -> Any:
    if not self._ahead:
      self._before = self._own_state()
      self._ahead.append(self._next(math.inf, again=True))
    return self._ahead[0]

  def _opened(self) -> Any:
    """The iterator."""
    if self._iterator is None:
      self._iterator = iter(self._batches)
    return self._iterator

  def _next(self, needed: float, *, again: bool) -> Any:
    """The next batch; `END` after the last, unless they start `again`."""
    number = self.taken + 1
    with self._reported(f'Batch {number} cannot be read'):
      for _ in range(2):
        item = next(self._opened(), END)
        if item is not END or not again:
          return item
        self._iterator = None
    errors.require(
      self.taken > 0, f'{self._prefix}There is no batch. Give at least one.'
    )
    wanted = '' if needed == math.inf else f', and the run takes {needed}'
    raise errors.UserError(
      f'{self._prefix}The batches ended after {self.taken}{wanted}. Give as '
      'many as there are steps, or something that can be iterated again, as a '
      'list.'
    )

  def _own_state(self) -> Any:
    """The state of the iterator itself as JSON, or None."""
    with self._reported(f'Batch {self.taken + 1} cannot be read'):
      iterator = self._opened()
    # Without one of them the state could not be restored.
    if not (hasattr(iterator, 'get_state') and hasattr(iterator, 'set_state')):
      return None
    with self._reported('The state of the loader cannot be saved'):
      return iterator_state.encode(iterator.get_state())

  @contextlib.contextmanager
  def _reported(self, what: str) -> Iterator[None]:
    """Makes one line of whatever the loader raises."""
    try:
      yield
    except errors.UserError as error:
      if self._prefix and not str(error).startswith(self._prefix):
        raise errors.UserError(f'{self._prefix}{error}') from error
      raise
    except KeyboardInterrupt:
      raise
    # An exit of the loader would end the program as if it had succeeded.
    except BaseException as error:
      hint, reason = '', conform.reason(error)
      if isinstance(error, flags.UnparsedFlagAccessError):
        hint = (
          " The loader, as one with grain's mp_prefetch, reads flags of absl: "
          'call absl.flags.FLAGS.mark_as_parsed() before it is read, or run '
          'the program by absl.app.run.'
        )
      elif 'thread' in reason:
        hint = (
          ' All batches are read in one thread, not in that which calls '
          '`distill`: open the connection in `__iter__`.'
        )
      raise errors.UserError(f'{self._prefix}{what}: {reason}{hint}') from error
