"""Processes that run something else are found before anything is trained."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from cxjax.parallel import agreement
import documents
import processes

# Two processes with values of their own.
PAIR = """
import sys
from cxjax import errors
from cxjax.parallel import agreement
from cxjax.parallel import multihost

me = int(sys.argv[2])
multihost.join(sys.argv[1], 2, me)
same = {'seed': 1, 'text': 'ä' * 99, 'rate': float('nan')}
agreement.require_same(lambda: same)
agreement.require_same(lambda: {'steps': 1 if me else 1.0})
try:
  agreement.require_same(lambda: {**same, 'student': {'width': 8 + 90 * me}})
except errors.UserError as error:
  print(error, flush=True)
multihost.barrier()
multihost.leave()
"""


class OneProcessTest(absltest.TestCase):
  def test_agrees_with_itself(self):
    def find():
      raise AssertionError

    agreement.require_same(find)


@pytest.mark.slow
class TwoProcessesTest(parameterized.TestCase):
  def test_both_say_what_differs(self):
    codes, said = processes.finished(
      processes.start_two(
        '-c', PAIR, f'127.0.0.1:{processes.free_port()}', '{}', devices=2
      )
    )
    self.assertEqual(codes, [0, 0], said)
    for out, _ in said:
      self.assertEqual(
        out.splitlines()[-1],
        'Processes 0 and 1 of this run differ: student.width (8 in process 0, '
        '98 in process 1). Start the same command in all of them, on the same '
        'data.',
      )

  @parameterized.named_parameters(
    ('rate', '--config.optimizer.learning_rate=0.{}1', r'learning_rate \(0.01'),
    ('text', '--config.data.source=files:{root}/{}.txt', r'corpus \(another\)'),
  )
  def test_a_run_ends_before_its_teacher(self, flag, message):
    root = pathlib.Path(self.create_tempdir().full_path)
    for number in range(2):
      text = '\n\n'.join(documents.make_documents(200, number))
      (root / f'{number}.txt').write_text(text)
    codes, said = processes.finished(
      processes.start_run(
        '--config=tests/own_text_config.py',
        f'--workdir={root}/run',
        f'--config.data.source=files:{root}/0.txt',
        '--config.data.shards=2',
        '--config.mesh.data=2',
        flag.replace('{root}', str(root)),
      )
    )
    for code, (_, text) in zip(codes, said, strict=True):
      self.assertIn(code, (1, 2))
      self.assertRegex(text, f'Error: Processes 0 and 1 .* differ: .*{message}')
    self.assertFalse((root / 'run' / 'teacher').exists())


if __name__ == '__main__':
  absltest.main()
