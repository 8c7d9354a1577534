"""Tests of loaders of users: one thread, states, ends and errors."""

import itertools
import threading

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import grain

from cxjax import errors
from cxjax.data import user_loader


class Noted:
  """An iterable that notes the thread of all that is done with it."""

  def __init__(self, number=3):
    self.number, self.threads, self.closed = number, [], 0

  def __iter__(self):
    self.threads.append(threading.get_ident())
    return self.items()

  def items(self):
    try:
      for i in range(self.number):
        self.threads.append(threading.get_ident())
        yield i
    finally:
      self.threads.append(threading.get_ident())
      self.closed += 1


class Own:
  """An iterator with a state of its own."""

  def __init__(self, make=lambda at: at, back=lambda state: state):
    self.at, self.make, self.back = 0, make, back

  def __iter__(self):
    return self

  def __next__(self):
    self.at += 1
    return self.at

  def get_state(self):
    return self.make(self.at)

  def set_state(self, state):
    self.at = self.back(state)


def raises_at(number, error):
  yield from range(number)
  raise error


def read(loader, number):
  return loader.thread.call(lambda: [loader.read() for _ in range(number)])


class ReadTest(parameterized.TestCase):
  def test_all_is_done_in_one_thread(self):
    batches = Noted()
    with user_loader.UserLoader(batches) as loader:
      self.assertEqual(loader.first(), 0)
      self.assertEqual(read(loader, 5), [0, 1, 2, 0, 1])
    self.assertLen(set(batches.threads), 1)
    self.assertNotIn(threading.get_ident(), batches.threads)
    self.assertEqual(batches.closed, 2)

  @parameterized.named_parameters(
    ('list', lambda: [1, 2, 3]), ('iterator', lambda: iter([1, 2, 3]))
  )
  def test_the_first_batch_is_not_lost(self, make):
    with user_loader.UserLoader(make()) as loader:
      self.assertEqual([loader.first(), loader.first()], [1, 1])
      self.assertEqual(read(loader, 3), [1, 2, 3])

  def test_the_first_batch_is_read_once(self):
    seen = []
    batches = map(lambda i: seen.append(i) or i, itertools.count())
    with user_loader.UserLoader(batches) as loader:
      loader.first()
      read(loader, 2)
    self.assertEqual(seen, [0, 1])

  def test_an_iterator_of_the_user_can_go_on(self):
    batches = raises_at(5, StopIteration)
    with user_loader.UserLoader(batches) as loader:
      read(loader, 2)
    self.assertEqual(next(batches), 2)

  def test_it_is_closed_after_an_error(self):
    noted = Noted()
    with (
      self.assertRaises(KeyError),
      user_loader.UserLoader(noted.items()) as loader,
    ):
      read(loader, 1)
      raise KeyError
    self.assertEqual(noted.closed, 1)
    self.assertLen(set(noted.threads), 1)

  def test_an_error_as_it_closes_is_a_warning(self):
    class Batches:
      def __iter__(self):
        return self

      def __next__(self):
        return 0

      def close(self):
        raise OSError('gone')

    with (
      self.assertLogs(level='WARNING') as log,
      self.assertRaises(KeyError),
      user_loader.UserLoader(Batches()) as loader,
    ):
      read(loader, 1)
      raise KeyError
    self.assertIn('as it is closed: gone', log.output[0])

  @parameterized.named_parameters(
    ('text', 'abc'), ('dict', {'x': 1}), ('number', 3), ('class', list)
  )
  def test_what_cannot_be_iterated(self, batches):
    with self.assertRaisesRegex(errors.UserError, 'The batches are a '):
      user_loader.UserLoader(batches)

  def test_a_generator_function_is_to_be_called(self):
    def batches():
      yield 1

    with self.assertRaisesRegex(errors.UserError, 'a function: call it'):
      user_loader.UserLoader(batches)


class EndTest(parameterized.TestCase):
  def test_no_batch(self):
    for batches in ([], iter([])):
      with user_loader.UserLoader(batches) as loader:
        for fun in (loader.first, lambda loader=loader: read(loader, 1)):
          with self.assertRaisesRegex(errors.UserError, 'There is no batch'):
            fun()

  def test_an_iterator_ends(self):
    with user_loader.UserLoader(iter([1, 2])) as loader:
      read(loader, 2)
      with self.assertRaisesRegex(errors.UserError, 'after 2, and .* takes 9'):
        loader.thread.call(loader.read, 9)

  def test_epochs_may_differ(self):
    lengths = iter([3, 1, 0])

    class Batches:
      def __iter__(self):
        return iter(range(next(lengths)))

    with user_loader.UserLoader(Batches()) as loader:
      self.assertEqual(read(loader, 4), [0, 1, 2, 0])
      with self.assertRaisesRegex(errors.UserError, 'ended after 4'):
        read(loader, 1)

  def test_once(self):
    with user_loader.UserLoader([1, 2]) as loader:
      self.assertEqual(loader.thread.call(lambda: list(loader.once())), [1, 2])


class RaiseTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('with_its_type', OSError('no\nfile.'), 'Batch 3 .*: OSError: no file.$'),
    ('that_exits', SystemExit(0), 'Batch 3 cannot be read: SystemExit: 0.$'),
    ('of_no_kind', GeneratorExit(), 'Batch 3 .*: GeneratorExit: no message.$'),
    ('without_a_message', KeyError(), 'Batch 3 .*: KeyError: no message.$'),
    ('of_ours', errors.UserError('Its own line.'), '^Its own line.$'),
    (
      'of_another_process',
      RuntimeError('In a worker:\nTraceback\n  line 5\nKeyError: 3'),
      'Batch 3 cannot be read: RuntimeError: In a worker: KeyError: 3.$',
    ),
    ('of_a_thread', OSError('thread 5'), 'open the connection in `__iter__`'),
  )
  def test_one_line_with_the_number(self, error, message):
    with user_loader.UserLoader(raises_at(2, error)) as loader:
      read(loader, 2)
      with self.assertRaisesRegex(errors.UserError, message) as caught:
        read(loader, 1)
    if not isinstance(error, errors.UserError):
      self.assertIs(caught.exception.__cause__, error)

  def test_flags_of_absl_that_are_not_parsed(self):
    """Flags of absl, which grain's mp_prefetch reads, even for its state."""

    def read(_):
      values = flags.FlagValues()
      flags.DEFINE_bool('profile', False, 'Of grain.', flag_values=values)
      return values.profile

    advice = r'--profile.*call absl.flags.FLAGS.mark_as_parsed\(\) before'
    with self.assertRaisesRegex(errors.UserError, f'Batch 1.*{advice}'):
      user_loader.UserLoader(map(read, 'ab')).read()
    with self.assertRaisesRegex(errors.UserError, f'be saved.*{advice}'):
      user_loader.UserLoader(Own(read)).state()

  def test_iter_raises(self):
    class Batches:
      def __iter__(self):
        raise ValueError('closed')

    message = 'held_out: Batch 1 cannot be read: ValueError: closed'
    with (
      user_loader.UserLoader(Batches(), 'held_out') as loader,
      self.assertRaisesRegex(errors.UserError, message),
    ):
      loader.first()


class StateTest(parameterized.TestCase):
  def test_a_grain_iterator_is_set_back_before_its_first_batch(self):
    data = grain.MapDataset.source([1, 2, 3]).to_iter_dataset()
    for batches in (data, iter(data)):
      with user_loader.UserLoader(batches) as loader:
        loader.first()
        state = loader.thread.call(loader.state)
        self.assertEqual(read(loader, 3), [1, 2, 3])
        after = loader.thread.call(loader.state)
      for again in (data, iter(data)):
        with user_loader.UserLoader(again) as loader:
          loader.thread.call(loader.set_state, state)
          self.assertEqual(read(loader, 1), [1])
      self.assertEqual(after['taken'], 3)

  @parameterized.named_parameters(
    ('bytes', lambda at: bytes([at]), lambda state: state[0]),
    ('tuple', lambda at: (at, None), lambda state: state[0]),
  )
  def test_a_state_of_any_kind(self, make, back):
    with user_loader.UserLoader(Own(make, back)) as loader:
      read(loader, 3)
      state = loader.thread.call(loader.state)
    with user_loader.UserLoader(Own(make, back)) as loader:
      loader.first()  # It is not served twice.
      loader.thread.call(loader.set_state, state)
      self.assertEqual(read(loader, 2), [4, 5])
    self.assertEqual(loader.taken, 5)

  @parameterized.named_parameters(
    ('unknown', lambda at: {at}, r'cannot be saved: get_state\(\) is a set'),
    ('raises', lambda at: 1 / 0, 'cannot be saved: ZeroDivisionError'),
  )
  def test_a_state_that_cannot_be_saved(self, make, message):
    with (
      user_loader.UserLoader(Own(make)) as loader,
      self.assertRaisesRegex(errors.UserError, message),
    ):
      loader.thread.call(loader.state)

  def test_a_state_of_another_loader(self):
    state = {'taken': 2, 'own': 2}
    for batches, message in (
      ([1, 2, 3], 'begun with a loader that'),
      (Own(back=lambda state: 1 / 0), 'cannot be restored: Zero'),
    ):
      with (
        user_loader.UserLoader(batches) as loader,
        self.assertRaisesRegex(errors.UserError, message),
      ):
        loader.thread.call(loader.set_state, state)

  def test_an_iterator_that_cannot_be_set_is_fast_forwarded(self):
    class Half(Own):
      set_state = property()  # It has none.

    with user_loader.UserLoader(Half()) as loader:
      read(loader, 3)
      state = loader.thread.call(loader.state)
    self.assertEqual(state, {'taken': 3, 'own': None})
    with user_loader.UserLoader(Half()) as loader:
      loader.thread.call(loader.set_state, state)
      self.assertEqual(read(loader, 1), [4])


if __name__ == '__main__':
  absltest.main()
