"""The documents: examples run, links lead somewhere, nothing is out of date."""

import contextlib
import importlib.util
import inspect
import pathlib
import pkgutil
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
import numpy as np
from PIL import Image
import pytest
import tokenizers

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
  *sorted(set(DOCS.rglob('*.md')) - set(DOCS.glob('_build/**/*.md'))),
)
# Their examples go on from those of the page before.
GUIDES = (
  'get_started.md',
  'howto/own_model.md',
  'howto/resuming.md',
  'howto/compare.md',
  'howto/logging.md',
  'howto/pretrained.md',
  'howto/terms_and_stages.md',
  'howto/decoders.md',
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
  """Names of files of the repository, but for links."""
  text = re.sub(r'\]\([^)]*\)', '', text)
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
          if there.parent == DOCS / 'notebooks':  # Copied by docs/conf.py.
            there = ROOT / 'experiments' / 'notebooks' / there.name
          self.assertTrue(there.exists())
          if part:
            self.assertIn(part, slugs(there))

  def test_files_that_are_named_exist(self):
    for page in PAGES:
      for path in paths_in(page.read_text()):
        with self.subTest(page=page.name, path=path):
          folders = (ROOT, ROOT / 'tests')  # faults.md names tests.
          self.assertTrue(any((at / path).exists() for at in folders))

  def test_modules_that_pages_run_exist(self):
    text = '\n'.join(page.read_text() for page in PAGES)
    named = re.findall(r'python\s+-m\s+(experiments[\w.]+)', text)
    self.assertGreater(len(named), 10)
    for name in named:
      with self.subTest(name=name):
        path = ROOT / name.replace('.', '/')
        main = (
          path / '__main__.py' if path.is_dir() else path.with_suffix('.py')
        )
        self.assertTrue(main.exists())

  def test_tests_that_the_faults_name_exist(self):
    text = (DOCS / 'faults.md').read_text()
    rows = re.findall(r'^\| (?!fault \|).*\|$', text, re.M)
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

  def test_what_is_cited_is_this_version(self):
    version = re.escape(cxjax.__version__)
    for path, line in (
      (ROOT / 'CITATION.cff', f'version: {version}'),
      (DOCS / 'citing.md', f'version = {{{version}}},'),
    ):
      with self.subTest(path=path.name):
        self.assertRegex(path.read_text(), rf'(?m)^ *{line}$')

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

  def test_every_public_name_is_in_the_reference(self):
    pages = sorted((DOCS / 'reference').glob('*.md'))
    text = '\n'.join(page.read_text() for page in pages)
    directive = r'^\.\. (?:auto[^m]\w+|py:data):: cxjax\.(\w+)$'
    named = re.findall(directive, text, re.M)
    modules = re.findall(r'^## `cxjax\.(\w+)', text, re.M)
    self.assertCountEqual([*named, *modules, '__version__'], cxjax.__all__)

  def test_no_sentence_is_read_as_a_type(self):
    """Sphinx takes the words before a colon for the type of a result."""
    pages = (DOCS / 'reference').glob('*.md')
    text = '\n'.join(page.read_text() for page in pages)
    for name in re.findall(r'^\.\. auto(?:function|class):: (.*)$', text, re.M):
      one = pkgutil.resolve_name(name)
      lines = re.findall(r'^Returns:\n +(.*)', inspect.getdoc(one), re.M)
      for part in vars(one).values():
        if isinstance(part, property):
          lines.append((part.__doc__ or '').partition('\n')[0])
      for line in lines:
        with self.subTest(name=name, line=line):
          self.assertNotIn(': ', re.sub(r'`[^`]*(`|$)', '', line))

  def test_every_page_is_in_a_table_of_contents(self):
    listed = {DOCS / 'index.md'}
    for page in PAGES:
      for tree in re.findall(
        r'^```{toctree}\n(.*?)^```', page.read_text(), re.S | re.M
      ):
        names = [n for n in tree.split('\n') if n and n[0] != ':']
        listed |= {page.parent / f'{name}.md' for name in names}
    pages = {page for page in PAGES if DOCS in page.parents}
    self.assertEqual(pages - listed, set())

  def test_every_picture_has_a_caption_and_says_what_it_shows(self):
    for page in PAGES:
      found = re.findall(
        r'^```{figure}(.*?)^```', page.read_text(), re.S | re.M
      )
      for figure in found:
        with self.subTest(page=page.name, figure=figure.split('\n')[0]):
          self.assertRegex(figure, r'\n:alt: .{40}')
          self.assertRegex(figure, r'\n\n.{40}')

  @pytest.mark.slow
  def test_thumbnails_are_of_the_stored_outputs(self):
    pictures = runpy.run_path(str(DOCS / 'pictures.py'))
    for name, number in pictures['THUMBNAILS'].items():
      notebook = ROOT / 'experiments' / 'notebooks' / f'{name}.ipynb'
      with Image.open(DOCS / '_static' / f'gallery_{name}.png') as kept:
        drawn = pictures['thumbnail'](notebook, number), kept
        new, old = (np.asarray(one.convert('RGB'), float) for one in drawn)
      with self.subTest(name=name):
        error = np.abs(new - old).mean()
        self.assertLess(error, 0.2, 'Run python docs/pictures.py.')


@pytest.mark.slow
class ExamplesTest(absltest.TestCase):
  def test_examples_run(self):
    page, space = DOCS / 'examples.md', {}
    for block in blocks(page):
      run_block(page, block, space)

  def test_the_readme_runs(self):
    page, space = ROOT / 'README.md', {}
    (block,) = blocks(page)
    run_block(page, block, space)
    self.assertLen(space['history'], 10)

  def test_the_guides_run(self):
    space, logged = {}, []
    wandb = types.SimpleNamespace(init=lambda **kwargs: None, log=logged.append)
    provide(self, 'wandb', wandb)
    for name in GUIDES:
      for block in blocks(DOCS / name):
        if "huggingface.read('folder')" in block:
          with self._folder_with_a_model():
            run_block(DOCS / name, block, {})
        else:
          run_block(DOCS / name, block, space)
    self.assertIn('eval/loss', logged[-1])
    with tempfile.TemporaryDirectory() as folder:
      opened = builders.open_experiment(
        space['get_config']('tiny'), pathlib.Path(folder)
      )
    builders.check(opened)

  def test_every_page_with_python_is_tried(self):
    tried = {'README.md', 'examples.md', 'adding.md'}
    tried |= {name.split('/')[-1] for name in GUIDES}
    for page in PAGES:
      if blocks(page):
        self.assertIn(page.name, tried)

  @contextlib.contextmanager
  def _folder_with_a_model(self):
    """Enters a folder that has a model in Hugging Face's layout."""
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
    words = {f'w{i}': i for i in range(8)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
      cxjax.huggingface.write('folder', bert, params, tokenizer)
      yield


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
