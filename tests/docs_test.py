"""The documents: examples run, links lead somewhere, nothing is out of date."""

import contextlib
import importlib.util
import pathlib
import re
import runpy
import sys
import tempfile
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

import cxjax
from cxjax import deprecation
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.methods import losses
from cxjax.methods import projections
from cxjax.methods import registry
from cxjax.models import base as models
from cxjax.tasks import base as tasks
from cxjax.training import metrics

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
PAGES = (
  ROOT / 'README.md',
  ROOT / 'CHANGELOG.md',
  ROOT / 'CONTRIBUTING.md',
  *sorted(DOCS.glob('*.md')),
)
# What the files of docs/adding.md add to.
REGISTRIES = (
  losses.LOSSES,
  losses.HIDDEN_LOSSES,
  projections.PROJECTIONS,
  registry.METHODS,
  models.MODELS,
  tasks.TASKS,
  metrics.METRICS,
)
ADDED = ('task', 'model', 'method', 'loss', 'metric', 'projection')


def blocks(page):
  return re.findall(r'^```python\n(.*?)^```', page.read_text(), re.S | re.M)


def run_block(page, block, space):
  # Above it as many lines as in the page, for the traceback.
  above = page.read_text().split(block)[0].count('\n')
  exec(compile('\n' * above + block, page, 'exec'), space)


def provide(test, name, module):
  """Makes a module importable in a test, which may import others meanwhile."""
  sys.modules[name] = module
  test.addCleanup(sys.modules.pop, name, None)


def slugs(page):
  """Where links into a page lead, as GitHub names its headings."""
  found = []
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
  for title in re.findall(r'^#+ (.*)', text, re.M):
    slug = re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
    number = found.count(slug)
    found += [slug, f'{slug}-{number}'] if number else [slug]
  return found


def paths_in(text):
  """Names of files of the repository that are written as code."""
  folders = 'cxjax|experiments|tests|docs'
  return set(re.findall(rf'\b((?:{folders})/[\w/.]+\.(?:py|md|ipynb))', text))


class PagesTest(absltest.TestCase):
  def test_links_lead_somewhere(self):
    for page in PAGES:
      text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
      for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match('https?://', link):
          continue
        path, _, part = link.partition('#')
        with self.subTest(page=page.name, link=link):
          there = page.parent / path if path else page
          self.assertTrue(there.exists())
          if part:
            self.assertIn(part, slugs(there))

  def test_files_that_are_named_exist(self):
    for page in PAGES:
      for path in paths_in(page.read_text()):
        with self.subTest(page=page.name, path=path):
          self.assertTrue((ROOT / path).exists())

  def test_modules_that_the_readme_runs_exist(self):
    text = (ROOT / 'README.md').read_text()
    named = re.findall(r'python\s+-m\s+(experiments[\w.]+)', text)
    self.assertGreater(len(named), 10)
    for name in named:
      with self.subTest(name=name):
        self.assertTrue((ROOT / f'{name.replace(".", "/")}.py').exists())

  def test_tests_that_the_faults_name_exist(self):
    rows = re.findall(r'^\|.*\|$', (DOCS / 'faults.md').read_text(), re.M)[2:]
    self.assertGreater(len(rows), 20)
    for row in rows:
      cell = row.split('|')[-2]
      named = re.findall(r'`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)', cell)
      self.assertTrue(named, row)
      for path, tests in named:
        text = (ROOT / 'tests' / path).read_text()
        for test in re.findall(r'`(\w+)`', tests):
          with self.subTest(path=path, test=test):
            self.assertRegex(text, rf'(def|class) {test}\(')

  def test_every_old_name_is_in_the_changelog(self):
    text = (ROOT / 'CHANGELOG.md').read_text()
    old = [*deprecation.NAMES, *deprecation.MODULES]
    old += [f'data.{name}' for name in deprecation.DATA_MODULES]
    for name in old:
      with self.subTest(name=name):
        self.assertIn(f'| `cxjax.{name}` |', text)


class ReferenceTest(absltest.TestCase):
  def test_every_public_name_has_an_example(self):
    text = '\n'.join(blocks(DOCS / 'examples.md'))
    shown = set(re.findall(r'\bcxjax\.(\w+)', text))
    self.assertEqual(set(cxjax.__all__) - shown, set())

  def test_the_reference_is_up_to_date(self):
    reference = runpy.run_path(str(DOCS / 'reference.py'))
    self.assertEqual(
      (DOCS / 'api.md').read_text(),
      reference['render'](),
      'Run python docs/reference.py.',
    )
    names = sum(reference['public']().values(), [])
    self.assertCountEqual(names, cxjax.__all__)


@pytest.mark.slow
class ExamplesTest(absltest.TestCase):
  def test_examples_run(self):
    page, space = DOCS / 'examples.md', {}
    for block in blocks(page):
      run_block(page, block, space)

  def test_the_readme_runs(self):
    page, space, logged = ROOT / 'README.md', {}, []
    wandb = types.SimpleNamespace(init=lambda **kwargs: None, log=logged.append)
    provide(self, 'wandb', wandb)
    for block in blocks(page):
      if 'huggingface.read(' in block:
        space |= self._enter_folder_with_a_model()
      run_block(page, block, space)
    self.assertIn('eval/loss', logged[-1])
    with tempfile.TemporaryDirectory() as folder:
      opened = builders.open_experiment(
        space['get_config']('tiny'), pathlib.Path(folder)
      )
    builders.check(opened)

  def _enter_folder_with_a_model(self):
    """Enters a folder that has a model in Hugging Face's layout."""
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.enter_context(contextlib.chdir(folder))
    bert = cxjax.Transformer(
      vocab_size=8,
      max_length=4,
      num_classes=8,
      width=4,
      heads=1,
      depth=1,
      causal=False,
    )
    x = {'tokens': jnp.ones((2, 4), int)}
    params = jax.jit(bert.init)(jax.random.key(0), x)
    cxjax.huggingface.write('folder', bert, params)
    return {'x': x, 'tokenizer': None}


@pytest.mark.slow
class AddingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    for entries in REGISTRIES:
      self.enter_context(mock.patch.dict(entries))

  @parameterized.parameters(*ADDED)
  def test_the_file_runs(self, what):
    text = (DOCS / 'adding.md').read_text()
    section = text.split(f'\n## A {what}\n')[1].split('\n## ')[0]
    (code,) = re.findall(r'^```python\n(.*?)^```', section, re.S | re.M)
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    path = folder / 'own.py'
    path.write_text(code)
    spec = importlib.util.spec_from_file_location('own_config', path)
    for _ in range(2):  # A flag of a config runs its file twice.
      module = importlib.util.module_from_spec(spec)
      provide(self, 'own_config', module)
      spec.loader.exec_module(module)
    summary = experiment.run(module.get_config('tiny'), folder / 'run')
    self.assertEqual(summary['steps'], 60)

  def test_every_file_is_tried(self):
    titles = re.findall(r'^## An? (.*)', (DOCS / 'adding.md').read_text(), re.M)
    self.assertCountEqual(titles, ADDED)
