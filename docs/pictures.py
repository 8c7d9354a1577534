"""Draws the pictures of the site into docs/_static.

`method.png` shows the stages of the extracted curriculum, `folders.png` who may
import whom; `gallery_NAME.png` is a thumbnail of a stored output of a notebook.

Run:
  python docs/pictures.py
"""

import base64
import io
import json
import pathlib
import tomllib
import typing

import matplotlib

matplotlib.use('Agg')
from matplotlib import patches
from matplotlib import pyplot as plt
from PIL import Image

DOCS = pathlib.Path(__file__).resolve().parent
# Which of the pictures of a notebook is its thumbnail.
THUMBNAILS = {
  'parity': 1,
  'distill_your_own': 0,
  'choose_a_curriculum': 0,
  'distill_a_decoder': 0,
  'reading_a_run': 2,
}
TEACHER, STUDENT, STAGE = '#4c72b0', '#dd8452', '#444444'


def draw_network(
  ax: typing.Any, x: float, width: float, color: str, name: str
) -> None:
  """Draws a network as a column of three blocks and an output."""
  ax.text(x, -0.75, name, ha='center', fontsize=12, color=color, weight='bold')
  for row, label in enumerate(('block 1', 'block 2', 'block 3', 'output')):
    output = row == 3
    wide = width * (0.55 if output else 1)
    box = patches.FancyBboxPatch(
      (x - wide / 2, row * 1.2),
      wide,
      0.66,
      boxstyle='round,pad=0.03',
      facecolor=color,
      alpha=0.45 if output else 0.9,
      edgecolor='none',
    )
    ax.add_patch(box)
    text = 'black' if output else 'white'
    ax.text(x, row * 1.2 + 0.33, label, ha='center', va='center', color=text)
    if row:
      ax.annotate(
        '',
        (x, row * 1.2 - 0.02),
        (x, row * 1.2 - 0.5),
        arrowprops=dict(arrowstyle='->', color=color),
      )
  ax.text(x, -0.33, 'input', ha='center', color=color)


def draw_method(ax: typing.Any) -> None:
  """Draws a teacher, a student, and the stages between them."""
  draw_network(ax, 1.6, 3.0, TEACHER, 'teacher (trained, fixed)')
  draw_network(ax, 7.9, 1.5, STUDENT, 'student')
  for row in range(4):
    y = row * 1.2 + 0.33
    start, end = (2.6, 7.3) if row == 3 else (3.25, 7.0)
    ax.annotate(
      '', (end, y), (start, y), arrowprops=dict(arrowstyle='->', color=STAGE)
    )
    what = 'KL of the outputs' if row == 3 else 'random projection'
    ax.text(5.1, y + 0.13, what, ha='center', fontsize=9, color=STAGE)
    ax.text(9.35, y, f'stage {row + 1}', va='center', fontsize=11, color=STAGE)
  ax.set_xlim(-0.1, 10.4)
  ax.set_ylim(-1.0, 4.5)


def draw_folders(ax: typing.Any) -> None:
  """Draws the layers of import-linter's contract, the lowest first."""
  text = (DOCS.parent / 'pyproject.toml').read_text()
  contracts = tomllib.loads(text)['tool']['importlinter']['contracts']
  layers = next(c['layers'] for c in contracts if c['type'] == 'layers')[1:]
  for row, layer in enumerate(reversed(layers)):
    names = [name.split('.')[-1].strip() for name in layer.split('|')]
    wide = 6 / len(names)
    for i, name in enumerate(names):
      box = patches.FancyBboxPatch(
        (i * wide + 0.05, row),
        wide - 0.1,
        0.72,
        boxstyle='round,pad=0.02',
        facecolor=TEACHER,
        edgecolor='none',
      )
      ax.add_patch(box)
      place = (i * wide + wide / 2, row + 0.36)
      ax.text(*place, name, ha='center', va='center', color='white', fontsize=8)
  ax.set_xlim(-0.1, 6.1)
  ax.set_ylim(-0.1, len(layers))


def thumbnail(notebook: pathlib.Path, number: int) -> Image.Image:
  """Makes a thumbnail of a picture among the outputs of a notebook."""
  cells = json.loads(notebook.read_text())['cells']
  outputs = [out for cell in cells for out in cell.get('outputs', ())]
  data = [out.get('data', {}).get('image/png') for out in outputs]
  chosen = [picture for picture in data if picture][number]
  picture = Image.open(io.BytesIO(base64.b64decode(chosen))).convert('RGB')
  picture.thumbnail((480, 300))
  return picture


def main() -> None:
  """Draws and saves the pictures."""
  folder = DOCS.parent / 'experiments' / 'notebooks'
  for name, number in THUMBNAILS.items():
    small = thumbnail(folder / f'{name}.ipynb', number)
    small.save(DOCS / '_static' / f'gallery_{name}.png', optimize=True)
  for name, draw, size in (
    ('method', draw_method, (8.4, 4.6)),
    ('folders', draw_folders, (5.6, 4.2)),
  ):
    figure, ax = plt.subplots(figsize=size)
    draw(ax)
    ax.axis('off')
    path = DOCS / '_static' / f'{name}.png'
    figure.savefig(path, dpi=150, bbox_inches='tight', facecolor='white')


if __name__ == '__main__':
  main()
