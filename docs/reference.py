"""Writes docs/api.md from the docstrings of the public names.

Run:
  python docs/reference.py
  python docs/reference.py --check

The second command fails if the file differs from what the first would write.
"""

import ast
import collections
import importlib
import inspect
import pathlib
import re
import sys
import textwrap
import types

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
WIDTH = 80
# Modules whose type aliases signatures name.
ALIASES = (
  'cxjax.types',
  'cxjax.methods.stage',
  'cxjax.methods.layer_matching',
  'cxjax.methods.train_step',
  'cxjax.models.base',
  'cxjax.tasks.base',
  'cxjax.training.metrics',
  'cxjax.training.multi_step',
  'cxjax.training.trainer',
)
# Members of public modules without an `__all__`, and where they are defined.
MEMBERS = {
  'cxjax.models': (
    'cxjax.models.base',
    ('Model', 'ModelWithHead', 'register', 'make', 'require'),
  ),
  'cxjax.training.metrics': (
    'cxjax.training.metrics',
    ('METRICS', 'register', 'resolve'),
  ),
}
# Bases whose subclasses get a constructor from their annotations.
FIELD_BASES = ('Module', 'PyTreeNode')
SECTIONS = 'Args|Attributes|Returns|Raises|References'
INTRODUCTION = """\
# Reference

Every public name, as in `cxjax.kl`, by the module that defines it, with a link
to its [example](examples.md). The types that signatures name, such as `Batch`
and `Params`, are [at the end](#types). `docs/reference.py` writes this page
from the docstrings.
"""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Source:
  """A module together with its source code."""

  def __init__(self, name: str):
    """Imports the module and parses its source."""
    self.name = name
    self.values = vars(importlib.import_module(name))
    text = pathlib.Path(self.values['__file__']).read_text()
    self.lines, self.tree = text.splitlines(), ast.parse(text)
    self.doc = ast.get_docstring(self.tree) or ''
    self.nodes = {name_of(node): node for node in self.tree.body}

  def comment(self, node: ast.stmt) -> list[str]:
    """Returns the lines of comment right above a statement."""
    first = node.lineno - 1
    while self.lines[first - 1].startswith('#'):
      first -= 1
    return self.lines[first : node.lineno - 1]

  def short(self, node: ast.expr) -> str:
    """Unparses an expression with the values of constants, without modules."""
    text = ast.unparse(node)
    for name, value in self.values.items():
      if inspect.ismodule(value) and value.__name__.startswith('cxjax.'):
        text = re.sub(rf'\b{name}\.', '', text)
      elif name.isupper() and isinstance(value, str | tuple):
        text = re.sub(rf'\b{name}\b', lambda _, v=value: repr(v), text)
    return text


def name_of(node: ast.stmt) -> str | None:
  """Returns the name that a statement defines, if it is a single one."""
  target = getattr(node, 'target', None)
  if isinstance(node, ast.Assign):
    target = node.targets[0]
  if isinstance(target, ast.Name):
    return target.id
  return getattr(node, 'name', None)


def public() -> dict[str, list[str]]:
  """Returns the names that `cxjax` exports, by the module they come from."""
  found = collections.defaultdict(list)
  tree = ast.parse((DOCS.parent / 'cxjax' / '__init__.py').read_text())
  for node in tree.body:
    if isinstance(node, ast.ImportFrom):
      names = [alias.name for alias in node.names if not alias.asname]
      found[node.module] += names
  return {module: names for module, names in sorted(found.items()) if names}


def members(module: str) -> list[tuple[Source, str]]:
  """Returns the names in a public module, and the sources that define them."""
  if module in MEMBERS:
    place, names = MEMBERS[module]
    source = Source(place)
    return [(source, name) for name in names]
  source, origin = Source(module), {}
  for node in source.tree.body:
    if isinstance(node, ast.ImportFrom):
      origin |= {alias.name: node.module for alias in node.names}
  names = source.values['__all__']
  return [(Source(origin[name]), name) for name in names]


def signature(source: Source, node: Definition) -> str:
  """Returns how a name is used, on one line if that fits."""
  name = name_of(node)
  if isinstance(node, ast.Assign | ast.AnnAssign):
    value = source.values[name]
    if isinstance(value, types.GenericAlias):
      return f'{name} = {source.short(node.value)}'
    return f'{name}: {type(value).__name__}'
  end = ''
  if isinstance(node, ast.ClassDef):
    if not _has_fields(node):
      bases = ', '.join(map(source.short, node.bases))
      return f'class {name}({bases})' if bases else f'class {name}'
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    found = [_argument(source, n.target.id, n, n.value) for n in fields]
  else:
    found = _arguments(source, node.args)
    end = f' -> {source.short(node.returns)}' if node.returns else ''
  line = f'{name}({", ".join(found)}){end}'
  if len(line) > WIDTH:
    line = f'{name}(\n' + ''.join(f'  {a},\n' for a in found) + f'){end}'
  return line


def _has_fields(node: ast.ClassDef) -> bool:
  """Returns whether the annotations of a class are its arguments."""
  made = (*node.decorator_list, *node.bases)
  names = ' '.join(map(ast.unparse, made))
  return 'dataclass' in names or any(base in names for base in FIELD_BASES)


def _arguments(source: Source, args: ast.arguments) -> list[str]:
  plain, named = args.posonlyargs + args.args, args.kwonlyargs
  defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
  one = lambda arg, default: _argument(source, arg.arg, arg, default)
  found = list(map(one, plain, defaults))
  if args.posonlyargs:
    found.insert(len(args.posonlyargs), '/')
  if args.vararg or named:
    found.append('*' + (args.vararg.arg if args.vararg else ''))
  found += map(one, named, args.kw_defaults)
  if args.kwarg:
    found.append('**' + args.kwarg.arg)
  return found[1:] if found[:1] == ['self'] else found


def _argument(
  source: Source,
  name: str,
  node: ast.arg | ast.AnnAssign,
  default: ast.expr | None,
) -> str:
  text = f'{name}: {source.short(node.annotation)}' if node.annotation else name
  return f'{text} = {source.short(default)}' if default else text


def markdown(doc: str | None) -> str:
  """Converts a docstring in Google's style to Markdown."""
  body, *rest = re.split(rf'^({SECTIONS}):\n', doc or '', flags=re.M)
  out = [_prose(body)]
  for title, text in zip(rest[::2], rest[1::2], strict=True):
    text = textwrap.dedent(text).strip()
    if title == 'Returns':
      out.append(f'**Returns** {_prose(text)}')
      continue
    items = [_prose(item) for item in re.split(r'\n(?!\s)', text)]
    if title != 'References':
      items = [re.sub(r'^([\w*]+): ', r'`\1`: ', item) for item in items]
    out.append(f'**{title}**\n\n' + '\n'.join(f'- {item}' for item in items))
  return '\n\n'.join(out)


def _prose(text: str) -> str:
  """Puts each paragraph of a text on one line, and each item of a list."""
  paragraphs = re.split(r'\n\s*\n', text.strip())
  lines = []
  for paragraph in paragraphs:
    items = re.split(r'\n(?=- )', paragraph)
    lines.append('\n'.join(' '.join(item.split()) for item in items))
  return '\n\n'.join(lines)


def examples() -> dict[str, str]:
  """Returns for each name the link to the heading of its first example."""
  found, link = {}, ''
  for line in (DOCS / 'examples.md').read_text().splitlines():
    link = f'#{slug(line[3:])}' if line.startswith('## ') else link
    for name in re.findall(r'\bcxjax\.(\w+)', line):
      found.setdefault(name, link)
  return found


def entry(source: Source, node: Definition) -> tuple[str, str]:
  """Returns the summary of a name and its whole entry."""
  if isinstance(node, ast.Assign | ast.AnnAssign):
    comment = [line.lstrip('# ') for line in source.comment(node)]
    doc = '\n'.join(comment) or _summary(source.doc)
  else:
    doc = ast.get_docstring(node) or ''
  parts = [f'```python\n{signature(source, node)}\n```', markdown(doc)]
  inner = node.body if isinstance(node, ast.ClassDef) else []
  inner = [member for member in inner if _is_public(member)]
  properties = [member for member in inner if _is_property(member)]
  if properties:
    parts.append('**Properties**')
    parts.append('\n'.join(map(_property, properties)))
  for member in inner:
    if member not in properties:
      parts.append(f'```python\n{signature(source, member)}\n```')
      parts.append(markdown(ast.get_docstring(member)))
  return _summary(doc), '\n\n'.join(parts)


def _summary(doc: str) -> str:
  return _prose(doc).split('\n')[0]


def _is_public(node: ast.stmt) -> bool:
  name = name_of(node) if isinstance(node, ast.FunctionDef) else '_'
  hidden = name.startswith('_') or name == 'setup'  # Flax calls `setup`.
  return not hidden or name == '__call__'


def _is_property(node: ast.FunctionDef) -> bool:
  return any('property' in ast.unparse(d) for d in node.decorator_list)


def _property(node: ast.FunctionDef) -> str:
  return f'- `{node.name}`: {_prose(ast.get_docstring(node) or "")}'


def aliases() -> str:
  """Returns the source of the types that signatures name."""
  found, shown = [], sum(public().values(), [])
  for name in ALIASES:
    source = Source(name)
    for node in source.tree.body:
      if not isinstance(node, ast.Assign | ast.AnnAssign):
        continue
      defined = name_of(node) or ''
      if re.match('[A-Z][a-z]', defined) and defined not in shown:
        found += source.comment(node)
        found += source.lines[node.lineno - 1 : node.end_lineno]
  return '\n'.join(found)


class Page:
  """A page in the making: its table of contents and its body."""

  def __init__(self):
    """Makes an empty page."""
    self.contents, self.body = [], []
    self._slugs = collections.Counter()
    self._examples = examples()

  def heading(self, level: int, title: str) -> str:
    """Adds a heading and returns a link to it, numbered as on GitHub."""
    self.body.append(f'{"#" * level} {title}')
    anchor = slug(title)
    number = self._slugs[anchor]
    self._slugs[anchor] += 1
    anchor = f'{anchor}-{number}' if number else anchor
    return f'[{title}](#{anchor})'

  def section(self, title: str, doc: str) -> None:
    """Adds the section of a module."""
    link = self.heading(2, title)
    self.contents.append(f'\n**{link}** {_summary(doc)}\n')
    self.body.append(markdown(doc))

  def add(self, source: Source, name: str, shown: str) -> None:
    """Adds the entry of a name.

    Args:
      source: the module that defines it.
      name: the name.
      shown: the public name that the example of the entry is listed under.
    """
    prefix = '' if name == shown else f'{shown}.'
    link = self.heading(3, f'`{prefix}{name}`')
    summary, text = entry(source, source.nodes[name])
    self.contents.append(f'- {link}: {summary}')
    self.body += [text, f'[Example](examples.md{self._examples[shown]})']

  def text(self) -> str:
    """Returns the page."""
    parts = [INTRODUCTION.strip(), '\n'.join(self.contents).strip(), *self.body]
    return '\n\n'.join(parts) + '\n'


def render() -> str:
  """Returns the whole page."""
  page = Page()
  modules = []
  for module, names in public().items():
    source = Source(module)
    is_module = lambda name, s=source: inspect.ismodule(s.values[name])
    modules += [(name, f'{module}.{name}') for name in names if is_module(name)]
    names = [name for name in names if not is_module(name)]
    if names:
      page.section(module, source.doc)
    for name in names:
      page.add(source, name, shown=name)
  for name, module in sorted(modules):
    page.section(f'cxjax.{name}', Source(module).doc)
    for source, member in members(module):
      page.add(source, member, shown=name)
  link = page.heading(2, 'Types')
  page.contents.append(f'\n**{link}** The types that signatures name.')
  page.body.append(f'```python\n{aliases()}\n```')
  return page.text()


def slug(title: str) -> str:
  """Returns the anchor that GitHub gives to a heading."""
  return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


if __name__ == '__main__':
  page_path, text = DOCS / 'api.md', render()
  if '--check' not in sys.argv:
    page_path.write_text(text)
  elif not page_path.exists() or page_path.read_text() != text:
    sys.exit('docs/api.md is out of date: run python docs/reference.py.')
