"""Batches that `distill` reads, the last of them too."""

import contextlib
import functools
import itertools
import sqlite3
import threading

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from small_networks import BIG
from small_networks import SMALL
from small_networks import B
from small_networks import X
from small_networks import Y
from small_networks import batches
from tests.api.distilled import Ended
from tests.api.distilled import FolderTest
from tests.api.distilled import distill
from tests.api.distilled import end_after
from tests.api.distilled import whole


class LoaderTest(FolderTest):
  """Each is read as the list of the same batches, or refused in one line."""

  def same(self, data, **options):
    params, history = distill(data=data, log_every=2, held_out=X, **options)
    want, same = whole()
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(history, same)

  def rows(self):
    """The path of a database of the batches."""
    path = self.folder() / 'rows'
    with contextlib.closing(sqlite3.connect(path)) as opened:
      opened.execute('create table rows (row blob)')
      data = [(x.tobytes(),) for x in batches()]
      opened.executemany('insert into rows values (?)', data)
      opened.commit()
    return path

  @pytest.mark.slow
  def test_lists_of_one_array(self):
    self.same([[x] for x in batches()])
    found = [
      distill(data=batches(), log_every=2, held_out=held_out)[1]
      for held_out in (X, [X], [[X]], (X,))
    ]
    for history in found[1:]:
      self.assertEqual(history, found[0])

  @pytest.mark.slow
  def test_a_connection_that_knows_one_thread(self):
    path = self.rows()
    read = lambda opened: (
      np.frombuffer(row, np.float32).reshape(B, -1)
      for (row,) in opened.execute('select row from rows')
    )

    class Batches:
      def __iter__(self):
        with contextlib.closing(sqlite3.connect(path)) as opened:
          yield from read(opened)

    self.same(Batches())
    with (
      contextlib.closing(sqlite3.connect(path)) as opened,
      self.assertRaisesRegex(errors.UserError, 'Batch 1 .*`__iter__`'),
    ):
      distill(data=read(opened))

  @pytest.mark.slow
  def test_a_buffer_that_is_used_again(self):
    def stream():
      buffer = np.empty_like(X)
      while True:
        for x in batches():
          buffer[:] = x
          yield buffer

    self.same(stream())

  def test_arrays_that_are_deleted(self):
    def stream():
      while True:
        for x in map(jnp.array, batches()):
          yield x
          x.delete()

    self.same(stream())

  def test_an_error_has_the_number_of_the_batch(self):
    cause, threads = OSError('gone'), []

    def stream():
      threads.append(threading.current_thread())
      yield from batches()
      raise cause

    with self.assertRaisesRegex(
      errors.UserError, '^Batch 13 cannot be read: OSError: gone.$'
    ) as caught:
      distill(data=stream(), held_out=X)
    self.assertIs(caught.exception.__cause__, cause)
    self.assertFalse(threads[0].is_alive())

  def test_a_state_that_cannot_be_saved_is_refused_first(self):
    class Batches:
      def __iter__(self):
        return self

      def __next__(self):
        return X

      def get_state(self):
        return {'rng': object()}

      def set_state(self, state):
        del state

    with self.assertRaisesRegex(errors.UserError, "'rng'. is a object"):
      distill(data=Batches(), held_out=X, on_record=self.fail)

  def test_held_out_may_not_be_the_iterator_of_the_batches(self):
    data = iter(batches())
    with self.assertRaisesRegex(errors.UserError, 'an iterator of its own'):
      distill(data=data, held_out=data)


class ListsTest(parameterized.TestCase):
  """Lists of numbers, of which each row would be a batch."""

  def refused(self, fun):
    with self.assertRaisesRegex(
      errors.UserError, 'numbers? of Python.*np.array'
    ):
      fun()

  @parameterized.named_parameters(
    ('rows', X.tolist()),
    ('pair', (X.tolist(), Y.tolist())),
    ('batch', [X.tolist()]),
    ('numbers', X[0].tolist()),
  )
  def test_refuses(self, given):
    self.refused(lambda: distill(data=given))
    self.refused(lambda: distill(held_out=given))
    self.refused(lambda: cxjax.plan(BIG, SMALL, given, num_steps=2))
    self.refused(
      lambda: cxjax.compare(
        BIG,
        SMALL,
        given,
        held_out=X,
        num_steps=2,
        rates=(1e-3,),
        seeds=1,
      )
    )


class LastBatchTest(FolderTest):
  @pytest.mark.slow
  def test_dropped(self):
    short = [*batches(), X[:5]]
    params, _ = distill(data=short, last_batch='drop', log_every=2, held_out=X)
    chex.assert_trees_all_equal(params, whole()[0])

  @pytest.mark.slow
  def test_dropped_and_resumed(self):
    folder, short = self.folder(), [*batches()[:3], X[:5]]
    again = functools.partial(
      distill, data=short, last_batch='drop', log_every=2, held_out=X
    )
    want, _ = again()
    with self.assertRaises(Ended):
      again(workdir=folder, on_record=end_after(7))
    chex.assert_trees_all_equal(again(workdir=folder)[0], want)
    with self.assertRaisesRegex(errors.UserError, 'last_batch'):
      again(workdir=folder, last_batch='error')

  def test_no_whole_batch(self):
    for data in ([X[:5]], itertools.repeat(X[:5])):
      with self.assertRaisesRegex(errors.UserError, 'Batch 2 and the one befo'):
        distill(data=data, last_batch='drop', held_out=X)

  @parameterized.parameters(True, False)
  @pytest.mark.slow
  def test_padded_is_the_mean_of_the_real_examples(self, labels):
    """In hidden and in output stages, with labels and without."""
    rows = [B, 5]
    data = [(batches()[i][:n], Y[:n]) for i, n in enumerate(rows)]
    tiled = [
      [np.concatenate([a] * (40 // len(a))) for a in one] for one in data
    ]
    options = {'alpha': 0.5} if labels else {}
    if not labels:
      data, tiled = ([x for x, _ in some] for some in (data, tiled))
    found = []
    for some, last in ((data, 'pad'), (tiled, 'error')):
      plan = cxjax.plan(
        BIG, SMALL, some[0], num_steps=12, layers=[('high', 'low')], **options
      )
      found.append(
        distill(
          plan,
          some,
          last_batch=last,
          held_out=data[0],
          optimizer=optax.sgd(0.1),
          log_every=6,
        )
      )
    (params, history), (want, same) = found
    chex.assert_trees_all_close(params, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      [record['loss'] for record in history],
      [record['loss'] for record in same],
      rtol=1e-5,
    )

  @pytest.mark.slow
  def test_a_padded_batch_fits_a_projection_by_its_real_examples(self):
    plan = cxjax.plan(
      BIG, SMALL, X, num_steps=2, layers=[('low', 'low')], projection='pca'
    )
    train = functools.partial(distill, plan, [X, X[:5]], last_batch='pad')
    weights = (np.arange(B) < 5).astype(np.float32)
    same = {'x': np.resize(X[:5], X.shape), 'weights': weights}
    found, want = (train(fit_on=[X, last]) for last in (X[:5], same))
    chex.assert_trees_all_equal(found, want)
    train()

  def test_a_choice_that_is_none(self):
    with self.assertRaisesRegex(errors.UserError, "'dorp'.*'drop'"):
      distill(last_batch='dorp')
