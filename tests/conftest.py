"""Settings of every test, made before anything is computed."""

import tempfile

from absl import flags
import jax

# Pytest reads the command line; without this absl, hence chex.variants, raises
# UnparsedFlagAccessError.
flags.FLAGS.mark_as_parsed()

# Sharding is tested on any machine; no effect on an accelerator.
jax.config.update('jax_num_cpu_devices', 4)
# A loss that broadcasts [B] against [B, 1] is wrong by a factor and silent.
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Test shapes are tiny: compiling costs more than running.
jax.config.update('jax_disable_most_optimizations', True)
# A run that is taken up again compiles what the run before it compiled.
jax.config.update('jax_compilation_cache_dir', tempfile.mkdtemp())
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
