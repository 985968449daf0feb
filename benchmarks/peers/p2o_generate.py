#!/usr/bin/env python3
"""Sampling throughput of p2o_jax, with the flags of the other scripts.  Needs p2o_jax.

python p2o_generate.py --model models/nano
python p2o_generate.py --model models/nano --eos-mean 48 --new-tokens 256 --batch 256 --slots 64
"""

import os
import time

import _common as C


def main():
    ap = C.base_parser(__doc__)
    ap.add_argument("--devices", type=int, default=1, help="parts that the CPU is split into")
    ap.add_argument(
        "--slots", type=int, default=0, help="rollouts decoded side by side; 0: the batch"
    )
    args = ap.parse_args()
    C.pin(args)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    from p2o_jax.config import RolloutConfig
    from p2o_jax.models import hf, hf_config, sharding
    from p2o_jax.rollout.engine import Engine
    from p2o_jax.runtime import distributed
    from p2o_jax.types import Request, SamplingParams

    cfg = C.model_config(args.model)
    stop = C.eos_ids(args, cfg)
    spec = hf_config.read_spec(args.model)
    distributed.split_cpu(args.devices)
    mesh = sharding.make_mesh((args.devices, 1, 1))
    slots = args.slots or args.batch
    rollout = RolloutConfig(
        questions=args.batch // args.group,
        group_size=args.group,
        slots=slots,
        prompt_buckets=(args.prompt_len,),
        prompt_cache_tokens=args.prompt_len * args.batch // args.group,
        prefill_tokens=2048,
    )
    engine = Engine(spec, mesh, rollout, [args.new_tokens], stop, 0, jnp.float32)
    weights = engine.to_rollout_layout(
        hf.load(args.model, spec, sharding.param_shardings(spec, mesh, sharding.LEARNER))
    )
    sampling = SamplingParams(args.temperature, args.new_tokens)

    def once(seed):
        prompts = C.prompt_ids(args.batch // args.group, args.prompt_len, cfg["vocab_size"], seed)
        requests = [
            Request(tuple(map(int, p)), f"{i}/{g}")
            for i, p in enumerate(prompts)
            for g in range(args.group)
        ]
        t, c = time.perf_counter(), time.process_time()
        out = engine.generate(weights, requests, sampling, jax.random.key(seed))
        return time.perf_counter() - t, time.process_time() - c, [len(x.token_ids) for x in out]

    first, _, _ = once(args.seed)
    engine.take_work()
    runs = [once(args.seed + 1 + i) for i in range(args.repeats)]
    work = engine.take_work()
    rates = [sum(n) / dt for dt, _, n in runs]
    C.emit(
        bench="p2o_generate",
        model=os.path.basename(args.model),
        batch=args.batch,
        group=args.group,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        eos_mean=args.eos_mean,
        slots=slots,
        tokens_per_s=C.med(rates),
        tokens_per_s_max=max(rates),
        cpu_s=C.med([r[1] for r in runs]),
        step_s=C.med([r[0] for r in runs]),
        first_call_s=first,
        compile_s=max(0.0, first - C.med([r[0] for r in runs])),
        mean_len=C.med([sum(n) / len(n) for _, _, n in runs]),
        max_len=max(max(n) for _, _, n in runs),
        frac_slots_busy=work.busy / work.computed,
        steps_over_ideal=work.computed / work.busy,
        versions=C.versions("jax", "p2o-jax"),
    )


if __name__ == "__main__":
    main()
