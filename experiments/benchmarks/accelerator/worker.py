"""Process that runs the cases of the accelerator benchmark with JAX.

Each message names a function of a module; the answers are its rows, then the
end or an error in one line. The log has the traceback.
"""

import importlib
import signal
import sys
import traceback
from typing import Any

from absl import flags

from experiments.benchmarks.accelerator import pipe as pipe


def serve(server: pipe.Server, message: dict[str, Any]) -> None:
  """Runs one case.

  Args:
    server: where the rows go.
    message: 'module', 'function', its 'options' and 'tiny'.
  """
  try:
    module = importlib.import_module(message['module'])
    function = getattr(module, message['function'])
    for row in function(tiny=message['tiny'], **message['options']):
      server.reply(row=row)
  except Exception as error:  # One case must not end the others.
    traceback.print_exc()
    server.reply(error=pipe.one_line(error))
  else:
    server.reply(done=True)


def main(seconds: int) -> None:
  """Serves until the other side closes, at most so many seconds."""
  signal.alarm(seconds)
  # JAX and PyTorch would load two sets of CUDA's libraries. From here on an
  # import of PyTorch fails as if it were not installed.
  sys.modules['torch'] = None  # type: ignore[assignment]
  server = pipe.Server()
  for message in server:
    serve(server, message)


if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  main(int(sys.argv[1]))
