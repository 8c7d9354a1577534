"""Old names, which work with a warning."""

import dataclasses
import inspect
import sys
import types
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized

import cxjax
from cxjax import deprecation
from cxjax import errors
from cxjax import tables
from cxjax.tasks import parity
from cxjax.training import metric_log

PACKAGE = 'old_package'
RENAMED = {
  'table': 'tables',
  'print_table': 'tables.markdown',
  'journal': 'training.metric_log',
}


class ModuleTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    package = types.ModuleType(PACKAGE)
    package.__path__ = []
    package.__getattr__ = deprecation.module_getattr(PACKAGE, RENAMED)
    self.enter_context(mock.patch.dict(sys.modules, {PACKAGE: package}))

  def test_old_function(self):
    with self.assertWarns(DeprecationWarning) as caught:
      from old_package import print_table
    self.assertIs(print_table, tables.markdown)
    self.assertEqual(
      str(caught.warning),
      'old_package.print_table is now cxjax.tables.markdown; the old name goes '
      'with the next release.',
    )
    self.assertEqual(caught.filename, __file__)

  def test_old_module(self):
    with self.assertWarnsRegex(DeprecationWarning, 'is now cxjax.tables;'):
      from old_package import table
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      self.assertIs(table.markdown, tables.markdown)
    self.assertIn('markdown', dir(table))
    with mock.patch.object(table, 'markdown', None):
      self.assertIsNone(tables.markdown)
    self.assertIsNotNone(tables.markdown)

  def test_old_name_in_an_old_module(self):
    with self.assertWarns(DeprecationWarning):
      from old_package import journal
    with self.assertWarnsRegex(
      DeprecationWarning, 'Journal is now cxjax.training.metric_log.MetricLog'
    ) as caught:
      found = journal.Journal
    self.assertIs(found, metric_log.MetricLog)
    self.assertEqual(caught.filename, __file__)

  def test_unknown_name(self):
    with self.assertRaisesRegex(ImportError, 'nothing'):
      from old_package import nothing  # noqa: F401
    with self.assertRaises(AttributeError):
      _ = sys.modules[PACKAGE].nothing

  @parameterized.parameters(
    *deprecation.MODULES.values(),
    *deprecation.DATA_MODULES.values(),
    *(new for all in deprecation.ATTRIBUTES.values() for new in all.values()),
    *deprecation.OLD_FORMS.values(),
  )
  def test_every_new_place_exists(self, place):
    find = deprecation.module_getattr('cxjax', {'old': place})
    with self.assertWarns(DeprecationWarning):
      self.assertIsNotNone(find('old'))


class PackageTest(parameterized.TestCase):
  @parameterized.parameters(*deprecation.NAMES.items())
  def test_old_public_name(self, old, new):
    with self.assertWarnsRegex(
      DeprecationWarning, f'^cxjax.{old} is now cxjax.{new};'
    ):
      found = getattr(cxjax, old)
    if f'cxjax.{old}' not in deprecation.OLD_FORMS:
      self.assertIs(found, getattr(cxjax, new))
    self.assertNotIn(old, cxjax.__all__)
    self.assertIn(new, cxjax.__all__)

  def test_old_module(self):
    with self.assertWarnsRegex(DeprecationWarning, 'cxjax.training.metric_log'):
      from cxjax import journal
    self.assertIs(journal.read, metric_log.read)

  def test_old_module_of_data(self):
    with self.assertWarnsRegex(DeprecationWarning, 'cxjax.tasks.parity'):
      from cxjax.data import parity as old
    self.assertIs(old.Parity, parity.Parity)


@deprecation.renamed_arguments(
  law='projection', positions=('tokens', {'read': 'predicted'})
)
def term(width, projection='gaussian', tokens='all'):
  return width, projection, tokens


@deprecation.renamed_arguments(law='projection')
@dataclasses.dataclass(frozen=True)
class Term:
  width: int
  projection: str = 'gaussian'


class ArgumentsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'law': 'sparse'}, (3, 'sparse', 'all'), 'projection='),
    ({'positions': 'all'}, (3, 'gaussian', 'all'), 'tokens='),
    ({'positions': 'read'}, (3, 'gaussian', 'predicted'), "tokens='predicted'"),
  )
  def test_old_keyword(self, old, result, new):
    with self.assertWarns(DeprecationWarning) as caught:
      self.assertEqual(term(3, **old), result)
    (name,) = old
    self.assertStartsWith(str(caught.warning), f'{name}= of term is now {new};')
    self.assertEqual(caught.filename, __file__)

  def test_new_keyword_does_not_warn(self):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      self.assertEqual(term(3, 'sparse'), (3, 'sparse', 'all'))
      self.assertEqual(term(3, tokens='predicted')[2], 'predicted')

  def test_class(self):
    with self.assertWarns(DeprecationWarning) as caught:
      found = Term(3, law='sparse')
    self.assertEqual(found, Term(3, 'sparse'))
    self.assertEqual(caught.filename, __file__)
    self.assertIsInstance(found, Term)
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      self.assertEqual(dataclasses.replace(found, width=2), Term(2, 'sparse'))

  def test_both_names_are_refused(self):
    with self.assertRaisesRegex(
      errors.UserError, 'term: law= is the old name of projection=; give'
    ):
      term(3, law='sparse', projection='gaussian')

  def test_two_old_names_of_one_argument_are_refused(self):
    fun = deprecation.renamed_arguments(a='c', b='c')(lambda c: c)
    with (
      self.assertWarns(DeprecationWarning),
      self.assertRaisesRegex(errors.UserError, 'b= is the old name of c='),
    ):
      fun(a=1, b=2)

  def test_signature_is_the_new_one(self):
    self.assertIn('projection', inspect.signature(term).parameters)
    self.assertNotIn('law', inspect.signature(term).parameters)


if __name__ == '__main__':
  absltest.main()
