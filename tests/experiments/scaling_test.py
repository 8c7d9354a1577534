"""Tests of the page of large runs."""

import dataclasses
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
import jax
import pytest

from cxjax import errors
from cxjax import tables
from cxjax.analysis import dry_run
from cxjax.analysis import hlo_cost
from cxjax.parallel import devices as devices_lib
from experiments import scaling
from experiments import scaling_cases as cases
from experiments import scaling_report

POINT = ('wikipedia', cases.SMALL, cases.OUTPUT)


def estimate(**fields):
  found = dry_run.Estimate(
    run='extracted',
    stage='output',
    steps=10,
    devices=16,
    chip=devices_lib.CHIPS['TPU v5 lite'],
    memory=dry_run.Memory(1e9, 1e9, 0.0, 0.0),
    cost=hlo_cost.Cost(1e12, 1e9),
    written=16e12,
    teacher_share=0.5,
  )
  return dataclasses.replace(found, **fields)


@pytest.mark.slow
class ScalingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.page = self.folder / 'scaling.md'
    self.enter_context(mock.patch.object(scaling, 'PAGE', self.page))
    saver = flagsaver.flagsaver(
      workdir=str(self.folder / 'work'), results=str(self.folder), written=True
    )
    self.enter_context(saver)

  def without_parameters(self):
    """Spares the page the counts of parameters, which take seconds."""
    found = mock.patch.object(scaling_report, 'parameters', lambda name: (1, 1))
    self.enter_context(found)

  def compile(self, found):
    device = jax.devices()[:1]
    with (
      mock.patch.object(dry_run, 'estimate', lambda *unused: [found]),
      mock.patch.object(devices_lib, 'topology', lambda name: device),
    ):
      scaling.compile_stage(POINT)

  def test_without_stages_nothing_is_written(self):
    with self.assertRaisesRegex(errors.UserError, 'no finished stage'):
      scaling.main([])
    self.assertEmpty(list(self.folder.glob('scaling.*')))

  def test_a_compiled_stage_is_read_back(self):
    self.compile(estimate())
    self.assertEqual(scaling.finished(POINT), estimate())
    scaling.main([])
    self.assertIn('| output |', self.page.read_text())
    lines = (self.folder / 'scaling.csv').read_text().splitlines()
    self.assertLen(lines, 2)

  def test_a_stage_of_another_config_is_not_read(self):
    self.compile(estimate())
    case = dataclasses.replace(cases.CASES['wikipedia'], depth=6)
    with mock.patch.dict(cases.CASES, wikipedia=case):
      self.assertIsNone(scaling.finished(POINT))

  def test_a_row_of_the_file_is_kept_where_its_stage_is_not_at_hand(self):
    self.without_parameters()
    self.compile(estimate())
    scaling.main([])
    page, table = self.page.read_text(), self.folder / 'scaling.csv'
    rows = table.read_text()
    with flagsaver.flagsaver(workdir=str(self.folder / 'other')):
      self.assertIsNone(scaling.finished(POINT))
      self.assertEqual(list(scaling.stored()), [POINT])
      scaling.main([])
      self.assertEqual(self.page.read_text(), page)
      self.assertEqual(table.read_text(), rows)
      case = dataclasses.replace(cases.CASES['wikipedia'], rows={16: 128})
      with mock.patch.dict(cases.CASES, wikipedia=case):
        self.assertEmpty(scaling.stored())

  def test_only_stages_that_no_one_has_are_compiled(self):
    self.without_parameters()
    self.compile(estimate())
    scaling.main([])
    compiled = []
    points = mock.patch.object(cases, 'points', lambda: iter([POINT]))
    compile_stage = mock.patch.object(scaling, 'compile_stage', compiled.append)
    with (
      points,
      compile_stage,
      flagsaver.flagsaver(workdir=str(self.folder / 'other'), written=False),
    ):
      scaling.main([])
      self.assertEmpty(compiled)
      with flagsaver.flagsaver(recompile=True):
        scaling.main([])
      self.assertEqual(compiled, [POINT])

  def test_a_stage_that_does_not_fit_is_an_error(self):
    refused = ('20.0G', '15.7G')
    self.compile(estimate(memory=None, cost=None, refused=refused))
    with self.assertRaisesRegex(errors.UserError, '20.0G of 15.7G'):
      scaling.main([])


class ReportTest(absltest.TestCase):
  def rows(self):
    """The rows of the CSV file, one for each point."""
    rows = {}
    for point in cases.points():
      name, topology, stage = point
      cost = hlo_cost.Cost(1e12, 1e9 * (1 + len(rows)))
      one = scaling_report.row(point, estimate(cost=cost))
      rows.setdefault((name, topology), {})[stage] = one
    return rows

  def test_points_are_distinct(self):
    points = list(cases.points())
    self.assertLen(set(points), len(points))
    self.assertEqual({name for name, _, _ in points}, set(cases.CASES))

  def test_page_has_every_row(self):
    rows = self.rows()
    with mock.patch.object(
      scaling_report, 'parameters', lambda name: (2e9, 1e6)
    ):
      page = scaling_report.page(rows)
    self.assertNotIn('Not compiled yet', page)
    self.assertIn('Parameters: 2,000M, 1M.', page)
    for name in cases.CASES:
      self.assertIn(f'## {name}', page)
    for stage in cases.LAYERS:
      self.assertIn(f'{stage}, relative to the output stage: ', page)
    self.assertEqual(page.count('chip hours'), len(cases.CASES))

  def test_page_names_what_is_missing(self):
    rows = self.rows()
    del rows['billion', 'v5e:8x8'][cases.LABELS]
    with mock.patch.object(
      scaling_report, 'parameters', lambda name: (2e9, 1e6)
    ):
      page = scaling_report.page(rows)
    self.assertIn('Not compiled yet: labels of billion on v5e:8x8.', page)

  def test_cost_is_seconds_of_chips_for_tokens(self):
    one = scaling_report.row(POINT, estimate())
    self.assertAlmostEqual(one['step ms'], 1e12 / 197e12 * 1e3)
    expected = 1e12 / 197e12 * 16 / (256 * 512) * 1e6
    self.assertAlmostEqual(one[scaling_report.COST], expected)
    self.assertNotEmpty(tables.markdown([one]))


if __name__ == '__main__':
  absltest.main()
