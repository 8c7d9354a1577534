"""What a power loss leaves of files that were not synced; no tests.

Python's file operations are recorded. What other libraries write beside them
counts as on the disk once one of them syncs it: the content of a file when the
file is synced, a name when its folder is.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import stat
import threading
from unittest import mock

OPERATIONS = ('fsync', 'mkdir', 'rename', 'replace', 'rmdir', 'unlink')
# Nothing that was not synced is there; names are there and contents are not;
# removals have reached the disk and nothing else.
VARIANTS = ('lost', 'emptied', 'removed')


class Disk:
  """A folder, and what is on the disk of it.

  Attributes:
    operations: number of recorded operations.
  """

  def __init__(self, root, key):
    """Begins with an empty folder that is on the disk.

    Args:
      root: the folder.
      key: function of a tree; of trees with the same key the last is kept.
    """
    self._root, self._key = root, key
    self._names, self._contents = {}, {}  # By inode: what was synced last.
    self._held = {}  # Open files: their inodes are not used again.
    self._lock = threading.RLock()
    self.operations, self._trees = 0, {}
    self._remember(self._hold(root))

  @contextlib.contextmanager
  def recorded(self):
    """Records the operations of the block, and the states around them."""
    with contextlib.ExitStack() as stack:
      for name in OPERATIONS:
        operation = functools.partial(self._operation, name, getattr(os, name))
        stack.enter_context(mock.patch.object(os, name, operation))
      yield
    self._capture()
    for descriptor in self._held.values():
      os.close(descriptor)

  def _operation(self, name, function, *args, **kwargs):
    with self._lock:
      self.operations += 1
      self._capture()
      found = function(*args, **kwargs)
      if name == 'fsync':
        self._remember(args[0])
      return found

  def _hold(self, path):
    """Keeps an inode from being used again; returns a descriptor of it."""
    inode = os.lstat(path).st_ino
    if inode not in self._held:
      self._held[inode] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    return self._held[inode]

  def _remember(self, descriptor):
    """Notes what a synced file or folder holds."""
    status = os.fstat(descriptor)
    path = pathlib.Path(f'/proc/self/fd/{descriptor}')
    place = path.readlink()
    if not place.is_relative_to(self._root):
      return
    if stat.S_ISDIR(status.st_mode):
      names = {}
      for child in place.iterdir():
        self._hold(child)
        names[child.name] = child.lstat().st_ino
      self._names[status.st_ino] = names
    else:
      self._hold(place)
      self._contents[status.st_ino] = path.read_bytes()

  @property
  def states(self):
    """Trees that a power loss may leave, one for each key.

    A tree is `{PATH: content}`; the content of a folder is None.
    """
    return list(self._trees.values())

  def left(self, variant):
    """Returns the tree that a power loss leaves now."""
    return dict(self._tree(variant, self._root))

  def _capture(self):
    for variant in VARIANTS:
      tree = self.left(variant)
      digest = hashlib.sha256(repr(self._key(tree)).encode()).hexdigest()
      self._trees[digest] = tree

  def _tree(self, variant, root):
    """Yields `(path, content)` of all that a power loss leaves."""
    if variant == 'emptied':
      for path in sorted(root.rglob('*')):
        with contextlib.suppress(FileNotFoundError):
          status = path.lstat()
          is_folder = stat.S_ISDIR(status.st_mode)
          content = self._contents.get(status.st_ino, b'')
          yield str(path.relative_to(root)), None if is_folder else content
      return
    here = {root.stat().st_ino: set(os.listdir(root))}
    if variant == 'removed':
      for path in root.rglob('*'):
        with contextlib.suppress(FileNotFoundError):
          if path.is_dir():
            here[path.stat().st_ino] = set(os.listdir(path))
    yield from self._synced(root.stat().st_ino, '', variant, here)

  def _synced(self, inode, prefix, variant, here):
    for name, child in sorted(self._names.get(inode, {}).items()):
      if variant == 'removed' and name not in here.get(inode, ()):
        continue
      is_folder = stat.S_ISDIR(os.fstat(self._held[child]).st_mode)
      content = self._contents.get(child, b'')
      yield prefix + name, None if is_folder else content
      yield from self._synced(child, f'{prefix}{name}/', variant, here)


def restore(tree, folder):
  """Writes a tree to a new folder."""
  folder.mkdir()
  for name, content in tree.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
      path.mkdir(exist_ok=True)
    else:
      path.write_bytes(content)
