"""Installs the wheel in an empty environment and tries it there; no tests.

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
  """Installs the one wheel of a folder and runs the program of the README."""
  (wheel,) = pathlib.Path(folder).resolve().glob('*.whl')
  program = re.findall(
    r'^```python\n(.*?)^```', README.read_text(), re.S | re.M
  )
  with tempfile.TemporaryDirectory() as place:
    subprocess.run([sys.executable, '-m', 'venv', place], check=True)
    python = f'{place}/bin/python'
    install = [python, '-m', 'pip', 'install', '--quiet', wheel]
    subprocess.run(install, check=True)
    # Elsewhere, where no checkout can be imported in its place.
    subprocess.run([python, '-c', program[0]], cwd=place, check=True)
  print(f'{wheel.name} works in an empty environment.')


if __name__ == '__main__':
  main(*sys.argv[1:])
