"""Installs the wheel, then the sdist, in an empty environment and tries them.

Neither has tests.

Run:
  python tests/try_wheel.py dist
"""

import pathlib
import re
import subprocess
import sys
import tempfile

README = pathlib.Path(__file__).parent.parent / 'README.md'


def main(folder):
  """Installs the wheel and the sdist, and runs the README's program on each."""
  dist = pathlib.Path(folder).resolve()
  (wheel,), (sdist,) = dist.glob('*.whl'), dist.glob('*.tar.gz')
  program = re.findall(
    r'^```python\n(.*?)^```', README.read_text(), re.S | re.M
  )
  with tempfile.TemporaryDirectory() as place:
    subprocess.run([sys.executable, '-m', 'venv', place], check=True)
    python = f'{place}/bin/python'
    pip = [python, '-m', 'pip', '--quiet']
    # The sdist finds the dependencies of the wheel there, and replaces it.
    again = ['--force-reinstall', '--no-deps', '--no-cache-dir']
    for package, flags in ((wheel, []), (sdist, again)):
      subprocess.run([*pip, 'install', *flags, package], check=True)
      # Elsewhere, where no checkout can be imported in its place.
      subprocess.run([python, '-c', program[0]], cwd=place, check=True)
      print(f'{package.name} works in an empty environment.', flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
