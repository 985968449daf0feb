"""Eight fake CPU devices for every test, and no silent broadcasting between ranks."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# most of the time goes into compiling; this halves it
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# threads of XLA's pool: with fewer, collectives of eight devices can wait forever
os.environ.setdefault("NPROC", "32")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
