"""Tests of the keyword arguments of the previous release."""

import warnings

from absl.testing import parameterized

from cxjax import errors
from cxjax.methods import curricula
from cxjax.methods import legacy
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib

Stage, Term = stage_lib.Stage, stage_lib.Term


class StageOfOneTermTest(parameterized.TestCase):
  def stage(self, *args, **fields):
    """The stage of the old form, which warns with a name of the new one."""
    with self.assertWarnsRegex(DeprecationWarning, 'terms=.cxjax.Term'):
      return Stage(*args, **fields)

  def test_fields_of_the_term(self):
    with self.assertWarnsRegex(DeprecationWarning, 'law= .*projection='):
      found = Stage(
        's0',
        5,
        student='s0',
        target='t0',
        loss=losses.l2,
        checkpoint=7,
        law='sparse',
        readout=True,
        width=3,
        shared=True,
        centred=True,
        positions='read',
        frozen=('s1',),
      )
    term = Term(
      's0',
      't0',
      projection='sparse',
      regressor=True,
      width=3,
      shared_projection=True,
      centered=True,
      tokens='predicted',
    )
    self.assertEqual(found, Stage('s0', 5, (term,), ('s1',), 7))

  def test_labels_beside_the_teacher(self):
    found = self.stage('s', 5, alpha=0.25, loss=losses.mse)
    self.assertEqual(found.terms, stage_lib.output_terms(losses.mse, 0.25))

  def test_the_warning_names_the_line_of_the_caller(self):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      Stage('s', 5, student='a', law='sparse')
      curricula.extracted((('t', 's'),), (1, 1), readout=True)
    self.assertLen(caught, 3)
    for one in caught:
      self.assertEqual(one.filename, __file__)

  def test_the_new_form_does_not_warn(self):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      Stage('s', 5, Term(), ('a',), 3)
      Stage(name='s', steps=5, terms=(Term(),), frozen=('a',), checkpoint=3)

  def test_both_forms_at_once(self):
    with self.assertRaisesRegex(errors.UserError, 'terms and also loss'):
      Stage('s', 5, Term(), loss=losses.l2)

  def test_an_unknown_field_is_named(self):
    with self.assertRaisesRegex(errors.UserError, "'lossy'.*mean 'loss'"):
      self.stage('s', 5, lossy=losses.l2)


class TermFieldsTest(parameterized.TestCase):
  def test_names_and_values(self):
    with self.assertWarns(DeprecationWarning):
      found = legacy.term_fields({'positions': 'read', 'pool': 'mean'}, 'x')
    self.assertEqual(found, {'tokens': 'predicted', 'pool': 'mean'})

  def test_both_names_of_a_field(self):
    with self.assertRaisesRegex(errors.UserError, 'law= is the old name'):
      legacy.term_fields({'projection': 'sparse', 'law': 'sparse'}, 'x')

  def test_options_of_extracted(self):
    with self.assertWarnsRegex(DeprecationWarning, 'readout= of extracted'):
      old = curricula.extracted((('t', 's'),), (1, 1), readout=True)
    new = curricula.extracted((('t', 's'),), (1, 1), regressor=True)
    self.assertEqual(old, new)
