"""Plots of runs: what they draw, and the files that they write."""

import os
import pathlib

from absl.testing import parameterized
import numpy as np
from PIL import Image
import pytest

from cxjax import errors
from cxjax.analysis import plots
from cxjax.parallel import multihost


def records(seeds=3, stages=('hidden0', 'output'), metric='accuracy'):
  """Two evaluated records and one that is not, for each stage."""
  found = []
  for stage in stages:
    for _ in range(2):
      step = 10 * (len(found) + 1)
      values = [0.1 * seed**2 + 0.001 * step for seed in range(seeds)]
      found.append({'step': step, 'stage': stage, f'eval/{metric}': values})
    found.append({'step': step + 10, 'stage': stage, 'loss': 1.0})
  return found


class TestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.path, self.figures = folder / 'plot.png', []
    patch = self.enter_context(pytest.MonkeyPatch.context())
    save = plots.save
    keep = lambda figure, path: (
      self.figures.append(figure),
      save(figure, path),
    )
    patch.setattr(plots, 'save', keep)
    self.patch = patch

  @property
  def panel(self):
    (panel,) = self.figures[-1].axes
    return panel

  def curve(self, label):
    (line,) = (
      line
      for line in self.panel.lines
      if line.get_label().split('\n')[0] == label
    )
    return line

  def draw(self, runs, metric='accuracy', ylabel='held-out accuracy', **kwargs):
    plots.curves(runs, metric, ylabel, self.path, **kwargs)


class CurvesTest(TestCase):
  def test_a_file_with_every_seed_and_the_median(self):
    self.draw({'one_shot': records(stages=('output',)), 'mine': records()})
    with Image.open(self.path) as picture:
      self.assertEqual(picture.format, 'PNG')
      self.assertGreater(min(picture.size), 400)
    line = self.curve('mine')
    np.testing.assert_array_equal(line.get_xdata(), [10, 20, 40, 50])
    # The median of three seeds is the second.
    want = [0.11, 0.12, 0.14, 0.15]
    np.testing.assert_allclose(line.get_ydata(), want)
    thin = [one for one in self.panel.lines if one.get_linewidth() < 1]
    seeds = np.array([one.get_ydata() for one in thin[-3:]])
    np.testing.assert_allclose(np.median(seeds, axis=0), want)
    np.testing.assert_allclose([seeds.min(), seeds.max()], [0.01, 0.45])

  def test_another_metric(self):
    self.draw(
      {'mine': records(metric='perplexity')}, 'perplexity', 'perplexity'
    )
    self.assertEqual(self.panel.get_ylabel(), 'perplexity')
    self.assertLen(self.curve('mine').get_ydata(), 4)

  def test_supervised_is_dashed_and_on_top(self):
    self.draw({'supervised': records(), 'one_shot': records()})
    supervised, one_shot = self.curve('supervised'), self.curve('one_shot')
    self.assertTrue(supervised.is_dashed())
    self.assertFalse(one_shot.is_dashed())
    self.assertGreater(supervised.get_zorder(), one_shot.get_zorder())

  @pytest.mark.slow
  def test_every_run_has_a_color_and_a_line_of_its_own(self):
    names = [*plots.COLORS, *map(str, range(5 * len(plots.OTHERS)))]
    self.draw({name: records() for name in names})
    looks = {
      (self.curve(name).get_color(), str(self.curve(name)._dash_pattern))
      for name in names
    }
    self.assertLen(looks, len(names))
    self.assertEqual(
      self.curve('extracted').get_color(), plots.COLORS['extracted']
    )

  @parameterized.parameters((1, 'one seed'), (3, 'median of 3 seeds'))
  def test_the_legend_says_what_the_lines_are(self, seeds, expected):
    self.draw({'mine': records(seeds)})
    title = self.panel.get_legend().get_title().get_text()
    self.assertStartsWith(title, expected)

  def test_a_seed_that_diverged_is_counted_and_hides_no_line(self):
    run = records(stages=('output',))
    for record in run[1:2]:
      record['eval/accuracy'][2] = float('nan')
    self.draw({'mine': run})
    line = self.curve('mine')
    self.assertEndsWith(line.get_label(), '(1 of 3 diverged)')
    np.testing.assert_allclose(line.get_ydata(), [0.11, 0.07], atol=1e-9)

  def test_a_line_for_the_teacher(self):
    self.draw({'mine': records()}, teacher=0.9)
    self.assertEqual(list(self.curve('teacher').get_ydata()), [0.9, 0.9])

  @pytest.mark.slow
  def test_title(self):
    self.draw({'mine': records()})
    self.assertEqual(self.panel.get_title(), 'held-out accuracy by method')
    self.draw({'mine': records()}, title='Parity')
    self.assertEqual(self.panel.get_title(), 'Parity')

  def test_of_several_processes_the_first_writes(self):
    self.patch.setattr(multihost, 'is_first', lambda: False)
    self.draw({'mine': records()})
    self.assertFalse(self.path.exists())

  def test_errors(self):
    message = 'run mine has no record of eval/f1.*it has: accuracy'
    with self.assertRaisesRegex(errors.UserError, message):
      self.draw({'mine': records()}, 'f1')
    with self.assertRaisesRegex(errors.UserError, 'it has: none'):
      self.draw({'mine': []})
    self.path.mkdir()
    with self.assertRaisesRegex(errors.UserError, 'Cannot write .*plot.png'):
      self.draw({'mine': records()})

  @parameterized.parameters('', '.', '/', 'a/..')
  def test_a_path_without_the_name_of_a_file(self, path):
    with self.assertRaisesRegex(errors.UserError, 'is a folder: give the path'):
      plots.curves({'mine': records()}, 'accuracy', 'y', pathlib.Path(path))

  def test_a_folder_that_is_missing(self):
    self.path = self.path.parent / 'none' / 'plot.png'
    message = 'No such file or directory. Choose another path'
    with self.assertRaisesRegex(errors.UserError, message):
      self.draw({'mine': records()})
    self.assertFalse(self.path.parent.exists())

  def test_a_plot_that_fails_leaves_nothing(self):
    def fails(descriptor):
      raise OSError(27, 'File too large')

    self.patch.setattr(os, 'fsync', fails)
    message = r'plot.png: File too large\. Allow larger .* another path\.'
    with self.assertRaisesRegex(errors.UserError, message):
      self.draw({'mine': records()})
    self.assertEmpty([*self.path.parent.iterdir()])


class BoundariesTest(TestCase):
  def lines(self):
    return [
      line for line in self.panel.lines if len(set(line.get_xdata())) == 1
    ]

  def test_a_line_where_a_stage_ends(self):
    runs = {
      'one_shot': records(stages=('output',)),
      'extracted': records(stages=('hidden0', 'hidden1', 'output')),
    }
    self.draw(runs)
    lines = self.lines()
    self.assertEqual([line.get_xdata()[0] for line in lines], [30, 60])
    for line in lines:
      self.assertEqual(line.get_color(), plots.COLORS['extracted'])
    texts = [t.get_text() for t in self.panel.get_legend().get_texts()]
    self.assertEqual(
      texts,
      ['one_shot', 'extracted\nhidden0, hidden1, output', 'end of a stage'],
    )

  def test_a_strip_names_the_stages(self):
    stages = ('hidden0', 'hidden1', 'a name that is too long ' * 3)
    self.draw({'extracted': records(stages=stages)})
    strips = [(p.get_x(), p.get_width()) for p in self.panel.patches]
    self.assertEqual(strips, [(0, 30), (30, 30), (60, 30)])
    self.assertEqual([t.get_text() for t in self.panel.texts], list(stages[:2]))

  def test_no_line_and_no_entry_for_one_stage(self):
    self.draw({'one_shot': records(stages=('output',))})
    self.assertEmpty(self.lines())
    texts = [t.get_text() for t in self.panel.get_legend().get_texts()]
    self.assertEqual(texts, ['one_shot'])

  def test_dots_of_lines_that_coincide_alternate(self):
    self.draw({'progressive': records(), 'extracted': records()})
    first, second = self.lines()
    self.assertEqual(first.get_xdata()[0], second.get_xdata()[0])
    self.assertNotEqual(first._dash_pattern, second._dash_pattern)


class AxesTest(parameterized.TestCase):
  def test_panels_row_by_row(self):
    figure, panels = plots.axes('x', 'y', columns=2, rows=3, width=2)
    self.assertLen(panels, 6)
    self.assertEqual(figure.get_size_inches().tolist(), [4, 12])
    self.assertEqual(panels[3].get_xlabel(), 'x')


class SaveTest(parameterized.TestCase):
  def test_links_are_not_followed(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    other = folder / 'other'
    other.write_text('kept')
    for name in ('a.png', 'a.png.tmp'):
      (folder / name).symlink_to(other)
    plots.save(plots.axes('x', 'y')[0], folder / 'a.png')
    self.assertEqual(other.read_text(), 'kept')
    self.assertFalse((folder / 'a.png').is_symlink())
    self.assertCountEqual(
      [path.name for path in folder.iterdir()], ['a.png', 'other']
    )
