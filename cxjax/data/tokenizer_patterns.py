"""Regular expressions of tokenizers, which may come from a stranger.

The engine of the library tokenizers goes back when a match fails, which takes
for ever where one text can be matched in very many ways, and nothing can
interrupt it.
"""

import pathlib
import re
from typing import Any

from cxjax import errors

# What an expression consists of. Classes of characters may hold others; an
# escape may have an argument in braces.
_TOKEN = re.compile(
  r"""(?P<escape>\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\g<[^>]*>|\\.)
  |(?P<open>\((?:\?(?:[imx-]*:|[imx-]*\)|<?[=!]|>|~|<\w+>|\#[^)]*\)))?)
  |(?P<close>\))
  |(?P<fixed>\{(?P<count>\d+)(?:,(?P=count))?\})
  |(?P<repeat>[*+?][?+]?|\{\d*(?:,\d*)?\}[?+]?)
  |(?P<or>\|)
  |(?P<literal>.)""",
  re.VERBOSE | re.DOTALL,
)
# Repetitions in a row, of those of an alternative: each can multiply the ways
# to match a text.
MOST = 8


def require_fast(path: pathlib.Path, tokenizer: Any) -> None:
  """Checks the regular expressions of a tokenizer.

  Args:
    path: the file, for the message.
    tokenizer: the content of a `tokenizer.json`.

  Raises:
    UserError: an expression may take for ever on some text.
  """
  todo = [tokenizer]
  while todo:
    value = todo.pop()
    if isinstance(value, list):
      todo += value
    elif isinstance(value, dict):
      todo += (v for k, v in value.items() if k != 'vocab')
      pattern = value.get('Regex')
      if isinstance(pattern, str):
        errors.require(
          is_fast(pattern),
          f'{path} has the regular expression {pattern[:60]!r}, which repeats '
          'a repetition or a choice: some texts would never end. Take another '
          'tokenizer.',
        )


class _Group:
  """A group while it is read.

  Attributes:
    varies: whether it holds a repetition, or a choice between alternatives
      that may begin alike.
    firsts: first character of each alternative; '' if that is not a literal.
    row: number of repetitions in the alternative that is read.
  """

  def __init__(self) -> None:
    self.varies, self.row = False, 0
    self.firsts: list[str | None] = [None]

  def add(self, first: str) -> None:
    """Notes a part of an alternative."""
    if self.firsts[-1] is None:
      self.firsts[-1] = first

  @property
  def ambiguous(self) -> bool:
    """Returns whether repeats of the group may match in very many ways."""
    firsts = [(first or '').lower() for first in self.firsts]
    distinct = all(firsts) and len(set(firsts)) == len(firsts)
    return self.varies or (len(firsts) > 1 and not distinct)


def is_fast(pattern: str) -> bool:
  """Returns whether no text can make an expression go back without end.

  It must not repeat a group that itself repeats something, or that chooses
  between parts that may begin alike, as `(a+)+` or `(a|a)*`; must not call
  itself; and has at most `MOST` repetitions in a row.
  """
  groups, last = [_Group()], None
  for token in _TOKEN.finditer(_without_classes(pattern)):
    kind, text = token.lastgroup, token[0]
    kind = 'fixed' if kind == 'count' else kind
    group = groups[-1]
    if kind == 'open' and not re.fullmatch(r'\(\?([imx-]*|#.*)\)', text):
      groups.append(_Group())
      last = None
    elif kind == 'close' and len(groups) > 1:
      last = groups.pop()
      groups[-1].add('')
      groups[-1].varies |= last.ambiguous
    elif kind == 'or':
      group.firsts.append(None)
      group.row, last = 0, None
    elif kind in ('repeat', 'fixed'):
      # A repetition of its own does not vary; of a group that does it would.
      if last is not None and last.ambiguous and text != '?':
        return False
      varies = kind == 'repeat'
      group.varies |= varies
      group.row += varies
      if group.row > MOST:
        return False
      last = None
    elif text.startswith('\\g'):
      return False
    elif kind != 'open':
      group.add(text if kind == 'literal' else '')
      last = None
  return True


def _without_classes(pattern: str) -> str:
  """Replaces every class of characters, as `[a-z]`, by an escape."""
  found, depth, i = [], 0, 0
  while i < len(pattern):
    one = pattern[i : i + 2] if pattern[i] == '\\' else pattern[i]
    if one == '[':
      depth += 1
      # A bracket right after the beginning is a character of the class.
      begin = re.compile(r'\^?\]?').match(pattern, i + 1)
      one = pattern[i : begin.end()] if begin else one
    elif one == ']' and depth:
      depth -= 1
      if not depth:
        found.append('\\w')
    elif not depth:
      found.append(one)
    i += len(one)
  return ''.join(found)
