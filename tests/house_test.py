"""Rules of the house that no linter knows."""

import ast
import functools
import pathlib
import re
import shutil
import subprocess
import sys

from absl.testing import absltest
import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
  path
  for folder in ('cxjax', 'experiments')
  for path in (ROOT / folder).rglob('*.py')
)
CXJAX = [path for path in FILES if path.is_relative_to(ROOT / 'cxjax')]
TESTS = sorted((ROOT / 'tests').rglob('*.py'))
FILE_LINES, FUNCTION_LINES = 400, 60
# A comment above a function that may be longer, and why.
REASON = re.compile(r'\s*# long: \S')
# A docstring's first line names the thing: it does not begin with one of these.
OPENING = re.compile(r'(Of|What|Where|Whether|By|How|As|Else)\b')
# Nor does an entry of its sections, `name: of the run.`: it names the thing.
SECTION = re.compile(r'(Args|Attributes|Returns|Yields|Raises):')
ENTRY = re.compile(r'(?:\*{0,2}\w+: )?(of|what|as) ', re.IGNORECASE)
# Tests of several modules at once, which mirror none.
WHOLE = (
  'tests/api/bad_arguments_test.py',
  'tests/api/early_stop_test.py',
  'tests/api/interrupt_test.py',
  'tests/api/sequences_test.py',
  'tests/api/settings_runs_test.py',
  'tests/api/training_runs_test.py',
  'tests/configs/bad_values_test.py',
  'tests/configs/text_runs_test.py',
  'tests/interop/huggingface/families_test.py',
  'tests/interop/huggingface/folders_test.py',
  'tests/methods/loss_properties_test.py',
  'tests/parallel/sharded_runs_test.py',
)
# First lines that are right as they are, by 'FILE:NAME'.
ALLOWED: dict[str, str] = {}
# Packages that `import cxjax` leaves to the functions that need them.
LATER = (
  'IPython',
  'flax.nnx',
  'grain',
  'matplotlib',
  'orbax',
  'sklearn',
  'tensorboard',
  'tensorflow',
  'tensorflow_datasets',
  'torch',
  'transformers',
)
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path):
  return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path):
  return ast.parse(path.read_text())


@functools.cache
def definitions(tree, prefix=''):
  """Lists every function and class of a module, with its dotted name."""
  found = []
  for node in ast.iter_child_nodes(tree):
    inside = prefix
    if isinstance(node, FUNCTION | ast.ClassDef):
      inside = f'{prefix}{node.name}.'
      found.append((inside[:-1], node))
    if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
      found += definitions(node, inside)
  return found


def length(node):
  """Lines of the body of a function, its docstring apart."""
  body = node.body[1:] if ast.get_docstring(node) is not None else node.body
  return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def entries(docstring):
  """Yields the first line of each entry of the sections of a docstring."""
  section, last = '', ''
  for line in docstring.splitlines():
    if not line.startswith(' '):
      section = line if SECTION.fullmatch(line) else ''
    # The text of `Returns` is a paragraph, of which the first line counts.
    is_first = last == section or section not in ('Returns:', 'Yields:')
    if section and is_first and re.match('  [^ ]', line):
      yield line.strip()
    last = line


def is_public(name):
  parts = name.split('.')
  return not any(
    part.startswith('_') and not part.endswith('__') for part in parts
  )


class SizeTest(absltest.TestCase):
  def test_no_file_is_too_long(self):
    files = (*FILES, *TESTS)
    lengths = {name_of(p): len(p.read_text().splitlines()) for p in files}
    self.assertGreater(len(lengths), 50)
    long = {name: n for name, n in lengths.items() if n > FILE_LINES}
    self.assertEqual(long, {})

  def test_no_function_is_too_long(self):
    long = {}
    for path in FILES:
      lines = path.read_text().splitlines()
      for name, node in definitions(tree_of(path)):
        if not isinstance(node, FUNCTION) or length(node) <= FUNCTION_LINES:
          continue
        first = min([node, *node.decorator_list], key=lambda n: n.lineno).lineno
        if not REASON.match(lines[first - 2]):
          long[f'{name_of(path)}:{name}'] = length(node)
    self.assertEqual(long, {}, 'Split it, or say why above: # long: REASON')


class DocstringTest(absltest.TestCase):
  def docstrings(self):
    """Yields `(FILE:NAME, its docstring or None)` of all that is public."""
    for path in FILES:
      tree = tree_of(path)
      yield name_of(path), ast.get_docstring(tree)
      for name, node in definitions(tree):
        if self.is_documented(path, name):
          yield f'{name_of(path)}:{name}', ast.get_docstring(node)

  def is_documented(self, path, name):
    nested = path, name.rpartition('.')[0]
    return is_public(name) and nested not in self.functions

  def setUp(self):
    super().setUp()
    self.functions = {
      (path, name)
      for path in FILES
      for name, node in definitions(tree_of(path))
      if isinstance(node, FUNCTION)
    }

  def test_all_that_is_public_has_one(self):
    missing = [name for name, text in self.docstrings() if not text]
    self.assertEqual(missing, [])

  def test_the_first_line_says_the_noun(self):
    found = {}
    nodes = (
      (path, *one) for path in FILES for one in definitions(tree_of(path))
    )
    private = (
      (f'{name_of(path)}:{name}', ast.get_docstring(node))
      for path, name, node in nodes
    )
    for name, text in (*self.docstrings(), *private):
      line = (text or '').partition('\n')[0]
      if OPENING.match(line) and ALLOWED.get(name) != line:
        found[name] = line
    self.assertEqual(found, {})

  def test_entries_of_sections_say_the_noun(self):
    found = [
      f'{name_of(path)}:{name}: {line}'
      for path in FILES
      for name, node in definitions(tree_of(path))
      for line in entries(ast.get_docstring(node) or '')
      if ENTRY.match(line)
    ]
    self.assertEqual(found, [], 'Say the noun: `steps: number of steps of ...`')

  def test_what_is_allowed_is_there(self):
    """An entry whose docstring has changed is taken out."""
    self.assertContainsSubset(ALLOWED.items(), dict(self.docstrings()).items())


class SeamTest(absltest.TestCase):
  """A branch by the name of a task, a model or a method is in its registry."""

  def test_nothing_asks_for_the_name_of_a_task(self):
    asked = re.compile(
      r"""\b(task|model)\s*(==|!=|(not )?in\s*[(\[{])\s*['"]"""
    )
    found = [
      f'{name_of(path)}:{i}: {line.strip()}'
      for path in (*CXJAX, ROOT / 'launch.py')
      for i, line in enumerate(path.read_text().splitlines(), 1)
      if asked.search(line)
    ]
    self.assertEqual(found, [])
    for line in ("if config.task == 'text':", "c.model in ('mlp',)"):
      self.assertRegex(line, asked)

  def test_accuracy_is_one_metric_of_many(self):
    """Its name is where metrics are registered, and in what is old."""
    named = {
      'cxjax/api/held_out.py',
      'cxjax/legacy.py',
      'cxjax/tasks/base.py',
      'cxjax/training/metrics.py',
    }
    found = {
      name_of(path)
      for path in CXJAX
      for node in ast.walk(tree_of(path))
      if isinstance(node, ast.Constant) and node.value == 'accuracy'
    }
    self.assertEqual(found - named, set())


def is_of_one(test, modules):
  """True for a test of a module, or of a part of what one does."""
  parts = test.removesuffix('_test.py').split('_')
  names = ('_'.join(parts[:i]) for i in range(1, len(parts) + 1))
  return any(name in modules for name in names)


class TestsTest(absltest.TestCase):
  """The tests themselves."""

  def test_a_marker_is_below_parameters(self):
    """Above them it is lost: absl makes new functions of the one it marks."""
    lost = re.compile(r'@pytest\.mark\.\w+.*\n\s*@parameterized\.')
    found = [name_of(p) for p in TESTS if lost.search(p.read_text())]
    self.assertEqual(found, [])

  def test_they_mirror_the_package(self):
    """A test of `cxjax/a/b.py` is `tests/a/b_test.py`, or `b_PART_test.py`."""
    modules = {str(p.relative_to(ROOT / 'cxjax'))[:-3] for p in CXJAX}
    folders = {
      folder.name for folder in (ROOT / 'cxjax').iterdir() if folder.is_dir()
    }
    strays = [
      name_of(path)
      for path in TESTS
      if path.name.endswith('_test.py')
      and path.parent != ROOT / 'tests'
      and path.relative_to(ROOT / 'tests').parts[0] in folders
      and not is_of_one(str(path.relative_to(ROOT / 'tests')), modules)
    ]
    self.assertEqual(strays, list(WHOLE))


@pytest.mark.slow
class LaterTest(absltest.TestCase):
  """`import cxjax` is quick, for it imports no package that is slow."""

  def test_slow_packages_are_imported_where_they_are_used(self):
    code = f'import cxjax, sys; print(*sorted({{*{LATER}}} & {{*sys.modules}}))'
    found = subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(found.stdout, '\n', found.stderr)


def copied(folder):
  """A copy of the package and of its settings."""
  shutil.copytree(
    ROOT / 'cxjax', folder / 'cxjax', ignore=shutil.ignore_patterns('__*__')
  )
  for path in CXJAX:  # Above, packages lost their __init__.py.
    if path.name == '__init__.py':
      shutil.copy(path, folder / path.relative_to(ROOT))
  shutil.copy(ROOT / 'pyproject.toml', folder)
  return folder


# Imports from below, by the module that would have the line.
BREAKING = {
  'methods.losses': ('from cxjax.training import metrics', 'training.metrics'),
  'data.loader': ('from cxjax.configs import builders', 'configs.builders'),
  'training.trainer': ('from cxjax.tasks import parity', 'tasks.parity'),
  'tasks.parity': ('import cxjax.interop.stablehlo', 'interop.stablehlo'),
  'errors': ('from cxjax import files', 'files'),
  'parallel.mesh': ('from cxjax.models import mlp', 'models.mlp'),
  'analysis.plots': ('from cxjax.api import plan', 'api.plan'),
  'api.plan': ('def f():\n  from cxjax.configs import cli', 'configs.cli'),
}


@pytest.mark.slow
class ImportTest(absltest.TestCase):
  """The contract of imports holds, and fails where a line breaks it."""

  def lint(self, folder):
    program = pathlib.Path(sys.executable).parent / 'lint-imports'
    return subprocess.run(
      [program, '--no-cache'],
      cwd=folder,
      env={'PYTHONPATH': str(folder), 'PATH': '/usr/bin:/bin'},
      capture_output=True,
      text=True,
      check=False,
    )

  def test_lines_that_break_it(self):
    """All at once: each is named."""
    folder = copied(pathlib.Path(self.create_tempdir().full_path))
    done = self.lint(folder)
    self.assertIn('Analyzed', done.stdout, done.stderr)
    self.assertEqual(done.returncode, 0, done.stdout)
    for module, (line, _) in BREAKING.items():
      path = folder / 'cxjax' / f'{module.replace(".", "/")}.py'
      path.write_text(f'{path.read_text()}\n{line}\n')
    done = self.lint(folder)
    self.assertEqual(done.returncode, 1, done.stdout)
    for module, (_, imported) in BREAKING.items():
      with self.subTest(module):
        self.assertIn(f'cxjax.{module} -> cxjax.{imported} (l', done.stdout)
