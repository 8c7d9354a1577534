"""A workdir keeps the first batch of a loader where the run needs it again."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax import settings
from cxjax.api import first_batch
from cxjax.data import user_loader
from small_networks import BIG
from small_networks import SMALL
from small_networks import X


class Shuffled:
  """A loader whose order is another one whenever it is iterated."""

  def __init__(self):
    self.rng = np.random.default_rng(0)

  def __iter__(self):
    for _ in range(4):
      yield X[self.rng.permutation(len(X))] + self.rng.normal()


def plan(**options):
  return cxjax.plan(BIG, SMALL, X, num_steps=4, **options)


def run(folder, batches, plan, **options):
  return cxjax.distill(
    plan, batches, workdir=folder, log_every=1, eval_every=1, **options
  )


def stop(record):
  if record['step'] == 2:
    raise KeyError('a crash')


class ResumeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(
    (dict(layers=()), {}),
    (dict(layers=[('low', 'low')], projection='pca'), dict(held_out=X)),
    (dict(layers=[('low', 'low')], projection='pca'), {}),
  )
  @pytest.mark.slow
  def test_a_shuffling_loader_resumes(self, planned, options):
    one, loader = plan(**planned), Shuffled()
    with self.assertRaises(KeyError):
      run(self.folder, loader, one, on_record=stop, save_every=1, **options)
    _, history = run(self.folder, loader, one, save_every=1, **options)
    self.assertLen(history, 4)

  @pytest.mark.slow
  def test_it_is_the_first_that_was_trained_on(self):
    one = plan(layers=())
    run(self.folder, Shuffled(), one)
    with user_loader.UserLoader([X]) as user:
      kept = first_batch.read(self.folder, user, one.batch)
    np.testing.assert_array_equal(kept['x'], next(iter(Shuffled())))

  @pytest.mark.slow
  def test_killed_before_the_folder_has_a_config(self):
    """The next start, with another first batch, is the beginning."""
    one, loader = plan(layers=()), Shuffled()
    with (
      mock.patch.object(settings, 'claim_workdir', side_effect=KeyError),
      self.assertRaises(KeyError),
    ):
      run(self.folder, loader, one)
    self.assertTrue((self.folder / first_batch.FILE).exists())
    run(self.folder, loader, one)
    run(self.folder, loader, one)

  @pytest.mark.slow
  def test_a_list_and_given_data_are_not_kept(self):
    one = plan(layers=())
    run(self.folder / 'list', [X], one)
    run(self.folder / 'given', Shuffled(), one, held_out=X)
    self.assertEmpty([*self.folder.glob(f'*/{first_batch.FILE}')])


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def kept(self, batch, shapes):
    first_batch.keep(self.folder, batch)
    (self.folder / 'config.json').write_text('{}')
    with user_loader.UserLoader(['of the loader']) as user:
      return first_batch.read(self.folder, user, shapes)

  def test_any_batch(self):
    x = {'a': [np.ones((2, 3), jnp.bfloat16)], 'b': np.arange(2).reshape(2, 1)}
    batch = {'x': x, 'y': np.array([True, False]), 'weights': np.ones(2)}
    found = self.kept(batch, {'x': x, 'y': batch['y']})
    self.assertEqual(found.keys(), batch.keys())
    for got, want in (
      (found['x']['a'][0], x['a'][0]),
      (found['x']['b'], x['b']),
      (found['y'], batch['y']),
      (found['weights'], batch['weights']),
    ):
      self.assertEqual(got.dtype, want.dtype)
      np.testing.assert_array_equal(got, want)

  @parameterized.parameters(
    ({'x': X[:, :2]},),
    ({'x': {'tokens': X}},),
    ({'x': {'tokens': X, 'mask': X}},),
  )
  def test_a_batch_of_another_plan_is_not_taken(self, shapes):
    """The comparison of the configurations then refuses the folder."""
    self.assertEqual(self.kept(X, shapes), 'of the loader')

  @parameterized.parameters(lambda data: data[:-30], lambda data: b'')
  def test_a_damaged_file(self, change):
    self.kept(X, {'x': X})
    path = self.folder / first_batch.FILE
    path.write_bytes(change(path.read_bytes()))
    with self.assertRaisesRegex(errors.UserError, f'{path} is damaged'):
      self.kept(X, {'x': X})

  def test_a_changed_byte(self):
    self.kept(X, {'x': X})
    path = self.folder / first_batch.FILE
    data = path.read_bytes()
    at = data.index(X.tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with self.assertRaisesRegex(errors.UserError, f'{path} is damaged'):
      self.kept(X, {'x': X})

  def test_headers_that_zipfile_does_not_know(self):
    self.kept(X, {'x': X})
    path = self.folder / first_batch.FILE
    data = bytearray(path.read_bytes())
    for at in (data.index(b'PK\x03\x04') + 6, data.index(b'PK\x01\x02') + 8):
      data[at] |= 1  # Encrypted.
    path.write_bytes(data)
    with self.assertRaisesRegex(errors.UserError, f'{path} is damaged'):
      self.kept(X, {'x': X})

  def test_two_starts_at_once(self):
    claim = lambda first: first_batch.claim(
      self.folder, {'seed': 0}, Shuffled(), first, again=True
    )
    real = settings.claim_workdir

    def other_starts(*args):
      with self.assertRaisesRegex(errors.UserError, 'in use by another'):
        claim(X + 1)
      real(*args)

    with mock.patch.object(settings, 'claim_workdir', other_starts):
      claim(X)
    with user_loader.UserLoader([X + 2]) as user:
      found = first_batch.read(self.folder, user, {'x': X})
    np.testing.assert_array_equal(found['x'], X)

  @parameterized.parameters(*first_batch.BEGUN)
  def test_the_batch_of_a_run_is_not_replaced(self, name):
    first_batch.keep(self.folder, X)
    before = (self.folder / first_batch.FILE).read_bytes()
    (self.folder / name).touch()
    first_batch.keep(self.folder, X + 1)
    self.assertEqual((self.folder / first_batch.FILE).read_bytes(), before)
