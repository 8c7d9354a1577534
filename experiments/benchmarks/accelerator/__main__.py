r"""This project and PyTorch on one GPU: steps, attention, results, tests.

Run, on a machine with a GPU, JAX for it and PyTorch:
  python -m experiments.benchmarks.accelerator --results=FOLDER

Cases, in this order; what comes too late for --minutes is left out:
  environment  the card, the versions, the rate of matrix products of 8192 and
               of a pass over the memory.
  parity       a step of experiments/parity_mlp.py, 50,000 to 1,000 wide, batch
               of 1, one-shot, 1 and 8 students; parity_hidden, the hidden layer
               through a random projection; parity_graphs, one-shot with XLA's
               loops as CUDA graphs.
  base, small  a step of BERT on random tokens, in bfloat16 or float32, one-shot
               or _hidden. base: 12 blocks, 768 to 256 wide, 16 x 512 tokens;
               small: 4 blocks, 256 to 64 wide, 64 x 128 tokens.
  attention    that of cxjax/models/attention.py, of XLA and of cuDNN.
  agreement    whole small runs on the GPU and on the CPU.
  tests        the fast tests on the GPU; tests_cpu, on the CPU.

The sides of PyTorch are in torch_steps.py. The losses of the first 100 steps
must agree with those of its plain loop, or nothing is timed; another side
that does not agree is left out, and named. Not the same: ours draws its batches
as it trains, and reads the loss every 100 (parity) or 25 steps; those of
PyTorch lie on the device, and nothing reads the loss.

Every case runs in a process that may fail: its error is a line of the table.
After every case accelerator.md and accelerator.csv are written;
accelerator.log has what the processes print.
"""

from absl import flags
import jax

from cxjax import errors
from cxjax.configs import cli
from experiments import paths
from experiments.benchmarks.accelerator import cases as cases_lib
from experiments.benchmarks.accelerator import schedule as schedule

_CASES = flags.DEFINE_list(
  'cases', list(cases_lib.NAMES), 'Cases, in this order.'
)
_MINUTES = flags.DEFINE_float('minutes', 8.0, 'Longest time of all cases.', 0)
_TINY = flags.DEFINE_bool('tiny', False, 'Small sizes, to try it on a CPU.')


def main(argv: list[str]) -> None:
  """Runs the cases and prints the page."""
  del argv
  for name in _CASES.value:
    errors.lookup('case', name, dict.fromkeys(cases_lib.NAMES))
  # This process must leave the GPU to others.
  jax.config.update('jax_platforms', 'cpu')
  board = schedule.run(
    _CASES.value, 60 * _MINUTES.value, paths.results(), tiny=_TINY.value
  )
  print(board.text)


if __name__ == '__main__':
  cli.run(main)
