"""The documents: examples run, links lead somewhere, nothing is out of date."""

import pathlib
import re
import runpy

from absl.testing import absltest

import cxjax

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))


def blocks(page):
  return re.findall(r'^```python\n(.*?)^```', page.read_text(), re.S | re.M)


def slugs(page):
  """Where links into a page lead, as GitHub names its headings."""
  found = []
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
  for title in re.findall(r'^#+ (.*)', text, re.M):
    slug = re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
    number = found.count(slug)
    found += [slug, f'{slug}-{number}'] if number else [slug]
  return found


class DocsTest(absltest.TestCase):
  def test_examples_run(self):
    page = ROOT / 'docs' / 'examples.md'
    space = {}
    for block in blocks(page):
      # Above it as many lines as in the page, for the traceback.
      above = page.read_text().split(block)[0].count('\n')
      exec(compile('\n' * above + block, page, 'exec'), space)

  def test_every_public_name_has_an_example(self):
    text = '\n'.join(blocks(ROOT / 'docs' / 'examples.md'))
    shown = set(re.findall(r'\bcxjax\.(\w+)', text))
    self.assertEqual(set(cxjax.__all__) - shown, set())

  def test_the_reference_is_up_to_date(self):
    reference = runpy.run_path(str(ROOT / 'docs' / 'reference.py'))
    self.assertEqual(
      (ROOT / 'docs' / 'api.md').read_text(),
      reference['render'](),
      'Run python docs/reference.py.',
    )
    names = sum(reference['public']().values(), [])
    self.assertCountEqual(names, cxjax.__all__)

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
