"""Errors of functions of the user: one line with the place in their file."""

import pathlib
from unittest import mock

from absl import logging
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import pytest

from cxjax import tables
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import experiment
from cxjax.configs import user_code
from cxjax.parallel import shard_sums
import own_broken_config

FILE = pathlib.Path(own_broken_config.__file__)
LINE = 1 + FILE.read_text().splitlines().index(
  "    raise LookupError(f'the {part} is broken\\nin two lines')"
)


class UserCodeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(flagsaver.flagsaver())
    handler = logging.get_absl_handler()
    filters = list(handler.filters)
    self.addCleanup(lambda: setattr(handler, 'filters', filters))
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def said(self, main):
    """The line with which a program ends."""
    with (
      mock.patch.object(cli, 'print') as printed,
      self.assertRaises(SystemExit) as ended,
    ):
      cli.guarded(main)(['program'])
    self.assertEqual(ended.exception.code, 2)
    (call,) = printed.call_args_list
    self.assertNotIn('\n', call.args[0])
    return call.args[0]

  @parameterized.parameters(*own_broken_config.PARTS)
  @pytest.mark.slow
  def test_parts_of_an_experiment(self, part):
    config = own_broken_config.get_config(part)
    message = f'line {LINE} of {FILE} raises LookupError: the {part} is broken.'
    if FILE.is_relative_to(pathlib.Path.cwd()):
      message = message.replace(
        str(FILE), str(FILE.relative_to(pathlib.Path.cwd()))
      )
    self.assertEqual(
      self.said(lambda argv: experiment.run(config, self.folder)),
      f'Error: {message} {user_code.ADVICE}',
    )

  @parameterized.parameters('make', 'held_out', 'build')
  def test_of_a_plan(self, part):
    config, devices = own_broken_config.get_config(part), jax.devices()[:1]
    said = self.said(
      lambda argv: builders.abstract_specs(config, ['one_shot'], devices)
    )
    self.assertIn(f'raises LookupError: the {part} is broken.', said)

  @pytest.mark.slow
  def test_the_traceback_is_a_debug_message(self):
    config = own_broken_config.get_config('make')
    with mock.patch.object(logging, 'debug') as debug:
      self.said(lambda argv: experiment.run(config, self.folder))
    (call,) = debug.call_args_list
    self.assertIsInstance(call.kwargs['exc_info'], LookupError)

  def test_a_package_of_another_folder_is_no_code_of_the_user(self):
    place = self.folder / 'site-packages' / 'lib.py'
    names = {}
    exec(compile('def fail(*_):\n  raise LookupError', place, 'exec'), names)

    def own(*args):
      names['fail'](*args)

    line = own.__code__.co_firstlineno + 1
    said = self.said(lambda argv: shard_sums.over_shards(own, 1, (), 0))
    self.assertRegex(said, f'line {line} of .*user_code_test.py raises Lookup')

  def test_errors_of_the_program_and_of_the_package_keep_their_traceback(self):
    def fails():
      raise LookupError

    def package():
      tables.markdown(3)

    for fun, kind in ((fails, LookupError), (package, TypeError)):
      with self.assertRaises(kind) as caught:
        cli.guarded(lambda argv, fun=fun: fun())(['program'])
      self.assertNotIsInstance(caught.exception, SystemExit)
