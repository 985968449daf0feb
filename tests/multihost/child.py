"""The training command of `benchmarks.kill`, one of several processes, whose compiled programs all
processes share.

JAX gives a program of several processes with CPUs another key in each process, and only process 0
writes to the compilation cache: the others would compile all programs at every start.
"""

import sys

from benchmarks import kill


def main() -> None:
    from jax._src import cache_key  # private: there is no setting

    cache_key._hash_accelerator_config = lambda hash_obj, _: hash_obj.update(b"several CPUs")
    kill.child(sys.argv[1:])


if __name__ == "__main__":
    main()
