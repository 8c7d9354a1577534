"""Mistakes in the config flags: one line each."""

import pathlib
import re
import textwrap
import warnings

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
from ml_collections import config_flags

from cxjax import errors
from cxjax.configs import flags as flags_lib
from cxjax.training import signals

FILE = """
import ml_collections

def get_config(method='extracted'):
  c = ml_collections.ConfigDict(dict(
    method=method, batch_size=32, hard_labels=False, loss='kl', share=0.5))
  c.data = dict(d=8, k=2)
  c.extracted = dict(projection='gaussian', layers=(), steps=())
  c.progressive = dict(scores=(0.5,))
  c.empty = dict()
  c.listed, c.stages = ['a', 'b'], (dict(name='a'),)
  return c
"""
# Files that fail, and what the line says after '--config=FILE: '.
BROKEN = {
  'line 2 of FILE raises ZeroDivisionError: division by zero': """
    x = 1 / 0
  """,
  "line 3 of FILE raises KeyError: 'nothing'": """
    def get_config():
      return {}['nothing']
  """,
  'line 2 of FILE raises SyntaxError: ': """
    def get_config() return 3
  """,
  "line 2 of FILE raises ModuleNotFoundError: No module named 'nowhere'": """
    import nowhere
  """,
  'line 3 of FILE raises ValueError: two lines': """
    def get_config():
      raise ValueError('two\\nlines')
  """,
  'line 3 of FILE raises TypeError: no message': """
    def get_config():
      raise TypeError
  """,
  'line 3 of FILE raises FileNotFoundError: [Errno 2] No such file or '
  "directory: '/nowhere'": """
    def get_config():
      open('/nowhere')
  """,
  'line 3 of FILE raises UnicodeDecodeError: ': """
    def get_config():
      b'\\xff'.decode()
  """,
  'line 4 of FILE ends the program. It must return a config.': """
    import sys
    def get_config():
      sys.exit()
  """,
  'line 3 of FILE raises RecursionError: maximum': """
    def get_config():
      return get_config()
  """,
  'FILE raises TypeError: get_config() missing 1 required': """
    def get_config(method):
      return method
  """,
  'line 2 of FILE raises KeyboardInterrupt: no message': """
    raise KeyboardInterrupt
  """,
  'line 5 of FILE raises Odd: no message': """
    class Odd(BaseException):
      def __str__(self):
        raise ValueError
    raise Odd
  """,
  'FILE raises SyntaxError: source code string': '\0',
  'get_config returns a FrozenConfigDict; it must': """
    import ml_collections
    get_config = lambda: ml_collections.FrozenConfigDict({'a': 1})
  """,
  'get_config returns a config without fields.': """
    import ml_collections
    get_config = ml_collections.ConfigDict
  """,
  'the file does not define get_config.': """
    x = 1
  """,
  'get_config returns a dict; it must be an ml_collections.ConfigDict.': """
    def get_config():
      return {}
  """,
  'get_config returns a coroutine; it must': """
    async def get_config():
      pass
  """,
  'get_config returns a NoneType; it must': """
    def get_config():
      pass
  """,
}


class FlagsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.file = pathlib.Path(self.create_tempdir().full_path) / 'config.py'
    self.file.write_text(FILE)

  def message(self, call, *args):
    with self.assertRaises(errors.UserError) as caught:
      call(*args)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)


class LoadTest(FlagsTest):
  def test_words_are_the_argument(self):
    self.assertEqual(flags_lib.load(str(self.file)).method, 'extracted')
    self.assertEqual(flags_lib.load(f'{self.file}:a,b').method, 'a,b')
    self.assertEqual(flags_lib.load(f'{self.file}:').method, '')

  @parameterized.parameters(*BROKEN.items())
  def test_a_file_that_fails(self, said, text):
    self.file.write_text(textwrap.dedent(text))
    message = self.message(flags_lib.load, str(self.file))
    self.assertStartsWith(
      message, f'--config={self.file}: ' + said.replace('FILE', str(self.file))
    )

  def test_an_error_in_a_neighbor_names_the_neighbor(self):
    """As in the module that the files of experiments/ share."""
    self.file.with_name('neighbor_of_config.py').write_text('x = 1\ny = z\n')
    self.file.write_text(
      'import sys\n'
      f'sys.path.append({str(self.file.parent)!r})\n'
      'import neighbor_of_config\n'
    )
    message = self.message(flags_lib.load, str(self.file))
    self.assertRegex(
      message, 'line 2 of .*neighbor_of_config.py raises NameErr'
    )

  def test_the_line_of_the_file_and_not_of_a_library(self):
    self.file.write_text('import json\n\nx = json.loads("{")\n')
    message = self.message(flags_lib.load, str(self.file))
    self.assertIn(f'line 3 of {self.file} raises JSONDecodeError', message)

  def test_a_user_error_is_said_as_it_is(self):
    self.file.write_text(
      'from cxjax import errors\n'
      'def get_config():\n'
      "  raise errors.UserError('Unknown size.')\n"
    )
    self.assertEqual(
      self.message(flags_lib.load, str(self.file)), 'Unknown size.'
    )

  @parameterized.parameters('', 'nowhere.py', 'nowhere.py:tiny', '.', 'a.txt')
  def test_no_file(self, value):
    message = self.message(flags_lib.load, value)
    self.assertStartsWith(message, f'--config={value}: there is no such file.')

  def test_a_name_that_is_too_long(self):
    message = self.message(flags_lib.load, 'x' * 5_000 + '.py')
    self.assertEndsWith(message, 'as --config=experiments/parity_mlp.py.')

  def test_a_signal_is_no_mistake(self):
    self.file.write_text(
      'from cxjax.training import signals\n'
      "raise signals.Interrupted('SIGTERM')\n"
    )
    with self.assertRaises(signals.Interrupted):
      flags_lib.load(str(self.file))


class CheckTest(FlagsTest):
  def check(self, *args):
    flags_lib.check(['launch.py', f'--config={self.file}', *args])

  @parameterized.parameters(
    (
      '--config.data.kk=3',
      "Unknown field of config.data 'kk'. Did you mean 'k'",
    ),
    ('--config.dada.k=3', "mean 'data'"),
    ('--config.K=3', "no field 'K'. Did you mean config.data.k\\?"),
    ('--config.batch_size.x=3', 'config.batch_size has no fields, it is 32.'),
    ('--config.data=abc', 'config.data is a block; .*--config.data.d=VALUE'),
    ('--config.empty=abc', 'is a block; .*--config.empty.FIELD=VALUE'),
    ('--config.data', 'config.data is a block'),
    ('--config.batch_size=many', 'config.batch_size is a whole number, as 32'),
    ('--config.share=half', 'config.share is a number, as 0.5'),
    ('--config.hard_labels=maybe', 'is true or false, as false'),
    ('--config.extracted.projections=x', "mean 'projection'"),
    (
      '--config.extracted.law=sparse',
      'config.extracted.law is now config.extracted.projection. Set that',
    ),
    ('--config.progressive.scores[0]=1', 'a tuple cannot be set one by one'),
    (
      '--config.progressive.scores[1]=1',
      'which has no element 1',
    ),
    ('--config.listed[-1]=x', 'named by its number, as listed.0'),
    ('--config.listed[]=x', 'named by its number'),
    ('--config.listed[x]=x', 'named by its number'),
    ('--config.listed[0][0]=x', 'which has no element 0'),
    ('--config.batch_size[0]=x', 'is 32, which has no element 0'),
    ('--config.batch_size.x[0]=x', 'has no fields, it is 32'),
    ('--config.progressive.accuracies=(0.5,)', 'now config.progressive.scores'),
  )
  def test_mistake(self, flag, message):
    found = self.message(self.check, flag)
    self.assertRegex(found, f'^{re.escape(flag)}: .*|^Unknown')
    self.assertRegex(found, message)

  def test_the_value_may_be_the_next_word(self):
    self.assertIn(
      '=1.5: ', self.message(self.check, '--config.batch_size', '1.5')
    )
    self.check('--config.hard_labels', '--config.batch_size', '3')

  @parameterized.parameters(
    '--config.batch_size=3',
    '--config.hard_labels',
    '--config.loss=3',
    '--config.extracted.steps=(1,2)',
    '--config.listed[1]=x',
    '--config.stages[0].name=x',
    '--other=3',
  )
  def test_accepts(self, flag):
    self.check(flag)

  def test_what_follows_two_dashes_is_no_flag(self):
    self.check('--', '--config.nothing=3')

  def test_fields_before_the_file_are_for_absl(self):
    flags_lib.check(['launch.py', '--config.nothing=3'])

  def test_a_placeholder_without_a_value(self):
    self.file.write_text(
      'from ml_collections import config_dict\n'
      'def get_config():\n'
      '  hole = config_dict.placeholder(int, required=True)\n'
      "  return config_dict.ConfigDict({'a': hole})\n"
    )
    self.assertIn('has no value. Give', self.message(self.check))

  def test_a_flagfile_that_is_not_utf8(self):
    listed = self.file.with_name('flags.txt')
    listed.write_bytes(b'\xff')
    message = self.message(self.check, f'--flagfile={listed}')
    self.assertIn('is not UTF-8', message)

  def test_fields_between_two_files(self):
    fields = '--config.batch_size=3', f'--config={self.file}'
    self.assertIn('Give one --config', self.message(self.check, *fields))

  def test_flagfile(self):
    listed = self.file.with_name('flags.txt')
    listed.write_text(f'--config={self.file}\n--config.data.kk=3\n')
    message = self.message(
      flags_lib.check, ['launch.py', f'--flagfile={listed}']
    )
    self.assertIn("'kk'", message)

  def test_absl_reads_the_same_config(self):
    argv = ['launch.py', f'--config={self.file}:x', '--config.data.d=30']
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
      'config', flag_values=values, lock_config=True, sys_argv=argv
    )
    flags_lib.check(argv)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Of ml_collections: load_module.
      values(argv)
    self.assertEqual(holder.value.method, 'x')
    self.assertEqual(holder.value.data.d, 30)


if __name__ == '__main__':
  absltest.main()
