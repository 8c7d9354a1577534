"""Writes docs/api.md from the docstrings of the public names.

Run:
  python docs/reference.py
  python docs/reference.py --check

The second fails if the file is not what the first would write.
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
# Which modules define the types that signatures name.
ALIASES = ('losses', 'step', 'evaluation', 'journal')
SECTIONS = 'Args|Attributes|Returns|Raises|References'
INTRODUCTION = """\
# Reference

Every public name, as in `cxjax.kl`, by the module that defines it; each is at
work in the [examples](examples.md). What signatures call `Batch`, `Params` and
so on is [at the end](#types). `docs/reference.py` writes this page from the
docstrings.
"""


class Source:
  """A module, and what its source says that the module does not."""

  def __init__(self, name: str):
    """Imports the module and reads its source."""
    self.name = name
    self.values = vars(importlib.import_module(name))
    text = pathlib.Path(self.values['__file__']).read_text()
    self.lines, self.tree = text.splitlines(), ast.parse(text)
    self.doc = ast.get_docstring(self.tree)
    self.nodes = {_name(node): node for node in self.tree.body}

  def comment(self, node: ast.stmt) -> list[str]:
    """The lines of comment right above a statement."""
    first = node.lineno - 1
    while self.lines[first - 1].startswith('#'):
      first -= 1
    return self.lines[first : node.lineno - 1]

  def short(self, node: ast.expr) -> str:
    """An expression without modules of cxjax, and with values of constants."""
    text = ast.unparse(node)
    for name, value in self.values.items():
      if inspect.ismodule(value) and value.__name__.startswith('cxjax.'):
        text = re.sub(rf'\b{name}\.', '', text)
      elif name.isupper() and isinstance(value, str | tuple):
        text = re.sub(rf'\b{name}\b', repr(value), text)
    return text


def _name(node):
  """What a statement defines, if it is one name."""
  if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
    return node.targets[0].id
  return getattr(node, 'name', None)


def public() -> dict[str, list[str]]:
  """The public names, by the module that defines them."""
  found = collections.defaultdict(list)
  tree = ast.parse((DOCS.parent / 'cxjax' / '__init__.py').read_text())
  for node in tree.body:
    if isinstance(node, ast.ImportFrom):
      found[node.module] += [alias.name for alias in node.names]
  return dict(sorted(found.items()))


def signature(source: Source, node: ast.stmt) -> str:
  """How a name is used, on one line if that fits."""
  name = _name(node)
  if isinstance(node, ast.Assign):
    value = source.values[name]
    if isinstance(value, types.GenericAlias):
      return f'{name} = {source.short(node.value)}'
    return f'{name}: {type(value).__name__}'
  end = ''
  if isinstance(node, ast.ClassDef):
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    if not fields:
      return f'class {name}({", ".join(map(source.short, node.bases))})'
    found = [_argument(source, n.target.id, n, n.value) for n in fields]
  else:
    found = _arguments(source, node.args)
    end = f' -> {source.short(node.returns)}' if node.returns else ''
  line = f'{name}({", ".join(found)}){end}'
  if len(line) > WIDTH:
    line = f'{name}(\n' + ''.join(f'  {a},\n' for a in found) + f'){end}'
  return line


def _arguments(source, args):
  plain, named = args.posonlyargs + args.args, args.kwonlyargs
  defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
  one = lambda arg, default: _argument(source, arg.arg, arg, default)
  found = list(map(one, plain, defaults))
  if args.vararg or named:
    found.append('*' + (args.vararg.arg if args.vararg else ''))
  found += map(one, named, args.kw_defaults)
  if args.kwarg:
    found.append('**' + args.kwarg.arg)
  return found[1:] if found[:1] == ['self'] else found


def _argument(source, name, node, default):
  text = f'{name}: {source.short(node.annotation)}' if node.annotation else name
  return f'{text} = {source.short(default)}' if default else text


def markdown(doc: str) -> str:
  """A docstring in Google's style as Markdown."""
  body, *rest = re.split(rf'^({SECTIONS}):\n', doc, flags=re.M)
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


def _prose(text):
  """Its paragraphs, each on one line."""
  paragraphs = re.split(r'\n\s*\n', text.strip())
  return '\n\n'.join(' '.join(p.split()) for p in paragraphs)


def examples() -> dict[str, str]:
  """Of each name the heading below which it first occurs, as a link."""
  found, link = collections.defaultdict(str), ''
  for line in (DOCS / 'examples.md').read_text().splitlines():
    link = f'#{_slug(line[3:])}' if line.startswith('## ') else link
    for name in re.findall(r'\bcxjax\.(\w+)', line):
      found.setdefault(name, link)
  return found


def _entry(source, node):
  """Summary of a name, and all that there is to say of it."""
  if isinstance(node, ast.Assign):
    comment = [line.lstrip('# ') for line in source.comment(node)]
    doc = '\n'.join(comment) or source.doc
  else:
    doc = ast.get_docstring(node)
  parts = [f'```python\n{signature(source, node)}\n```', markdown(doc)]
  members = node.body if isinstance(node, ast.ClassDef) else []
  members = [m for m in members if _is_public(m)]
  properties = [m for m in members if _is_property(m)]
  if properties:
    parts.append('**Properties**')
    parts.append('\n'.join(map(_property, properties)))
  for member in members:
    if member not in properties:
      parts.append(f'```python\n{signature(source, member)}\n```')
      parts.append(markdown(ast.get_docstring(member)))
  return _summary(doc), '\n\n'.join(parts)


def _summary(doc):
  return _prose(doc).split('\n')[0]


def _is_public(node):
  name = _name(node) if isinstance(node, ast.FunctionDef) else '_'
  return not name.startswith('_') or name == '__call__'


def _is_property(node):
  return any('property' in ast.unparse(d) for d in node.decorator_list)


def _property(node):
  return f'- `{node.name}`: {_prose(ast.get_docstring(node))}'


def _aliases():
  """The source of the types that signatures name."""
  found = []
  for name in ALIASES:
    source = Source(f'cxjax.{name}')
    for node in source.tree.body:
      if isinstance(node, ast.Assign) and re.match('[A-Z][a-z]', _name(node)):
        found += source.comment(node)
        found += source.lines[node.lineno - 1 : node.end_lineno]
  return '\n'.join(found)


def render() -> str:
  """The whole page."""
  slugs, contents, body = collections.Counter(), [], []
  shown = examples()

  def heading(level, title):
    """Adds a heading; the link to it, where GitHub numbers equals."""
    body.append(f'{"#" * level} {title}')
    slug = _slug(title)
    number = slugs[slug]
    slugs[slug] += 1
    return f'[{title}](#{slug}-{number})' if number else f'[{title}](#{slug})'

  for module, names in public().items():
    source = Source(module)
    link = heading(2, module)
    contents.append(f'\n**{link}** {_summary(source.doc)}\n')
    body.append(markdown(source.doc))
    for name in names:
      link = heading(3, f'`{name}`')
      summary, text = _entry(source, source.nodes[name])
      contents.append(f'- {link}: {summary}')
      body += [text, f'[Example](examples.md{shown[name]})']
  contents.append(f'\n**{heading(2, "Types")}** Those that signatures name.')
  body.append(f'```python\n{_aliases()}\n```')
  parts = [INTRODUCTION.strip(), '\n'.join(contents).strip(), *body]
  return '\n\n'.join(parts) + '\n'


def _slug(title):
  return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


if __name__ == '__main__':
  page, text = DOCS / 'api.md', render()
  if '--check' not in sys.argv:
    page.write_text(text)
  elif not page.exists() or page.read_text() != text:
    sys.exit('docs/api.md is out of date: run python docs/reference.py.')
