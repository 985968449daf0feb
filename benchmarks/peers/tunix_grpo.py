#!/usr/bin/env python3
"""Seconds per GRPO step with Tunix's GRPOLearner + vanilla rollout.

  JAX_PLATFORMS=cpu python tunix_grpo.py --model models/nano

One step = 8 prompts x 8 generations x 128 new tokens, trivial reward
(number of distinct words), one AdamW update.  A step is timed from one reward
call to the next, as in trl_grpo.py, so it covers rollout + scoring + update.
"""

import logging
import os
import time
import warnings

import _common as C
import numpy as np
import tunix_generate as TG

warnings.filterwarnings("ignore")


def main():
    ap = C.base_parser(__doc__, grpo=True)
    ap.add_argument(
        "--rollout-logps",
        action="store_true",
        help="return sampler logprobs as old-policy logprobs",
    )
    args = ap.parse_args()
    C.pin(args)
    model, cfg, mesh, tok, hf = TG.load(args.model)
    import optax
    from flax import nnx
    from tunix.rl import rl_cluster as rlc
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    logging.disable(logging.WARNING)
    try:
        from absl import logging as alog

        alog.set_verbosity(alog.ERROR)
    except ImportError:
        pass

    stop = C.eos_ids(args, hf)
    P, G = args.prompts, args.generations
    mb = args.micro_batch // G if args.micro_batch else P
    tc = rlc.RLTrainingConfig(
        actor_optimizer=optax.adamw(args.lr),
        eval_every_n_steps=10**9,
        max_steps=args.steps,
        mini_batch_size=P,
        train_micro_batch_size=mb,
        rollout_micro_batch_size=P,
        compute_logps_micro_batch_size=P,
    )
    rc = base_rollout.RolloutConfig(
        max_tokens_to_generate=args.new_tokens,
        max_prompt_length=args.prompt_len,
        kv_cache_size=args.prompt_len + args.new_tokens,
        temperature=args.temperature,
        top_p=1.0,
        top_k=None,
        eos_tokens=stop or [-1],
        return_logprobs=args.rollout_logps,
    )
    roles = {rlc.Role.ACTOR: mesh, rlc.Role.REFERENCE: mesh, rlc.Role.ROLLOUT: mesh}
    cc = rlc.ClusterConfig(
        role_to_mesh=roles,
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=tc,
        rollout_config=rc,
    )
    ref = None
    if args.beta:
        gd, st = nnx.split(model)
        import jax

        ref = nnx.merge(gd, jax.tree.map(lambda x: x.copy(), st))
    stamps, cstamps, lens, gen_t, upd_t = [], [], [], [], []

    def reward(prompts, completions, **kw):
        stamps.append(time.perf_counter())
        cstamps.append(time.process_time())
        return [float(len(set(c.split()))) for c in completions]

    def timed(obj, name, sink):
        f = getattr(obj, name)

        def g(*a, **k):
            t = time.perf_counter()
            out = f(*a, **k)
            sink.append(time.perf_counter() - t)
            if name == "generate":
                lens.extend(len(x) for x in out.tokens)
            return out

        setattr(obj, name, g)

    def data():
        for i in range(args.steps):
            ids = C.prompt_ids(P, args.prompt_len, hf["vocab_size"], args.seed + i)
            yield {"prompts": np.array(TG.texts(tok, ids), dtype=object)}

    with mesh:
        cl = rlc.RLCluster(actor=model, reference=ref, tokenizer=tok, cluster_config=cc)
        timed(cl, "generate", gen_t)
        timed(cl, "update_actor", upd_t)
        learner = grpo_learner.GRPOLearner(
            rl_cluster=cl,
            reward_fns=reward,
            algo_config=grpo_learner.GRPOConfig(
                num_generations=G, num_iterations=1, beta=args.beta, epsilon=0.2
            ),
        )
        t0 = time.perf_counter()
        learner.train(data())
    d = np.diff(stamps).tolist()
    dc = np.diff(cstamps).tolist()
    # d[0] spans the first update (compiles the train step); d[1:] are steady.
    steady, cpu = d[1:], dc[1:]
    C.emit(
        bench="tunix_grpo",
        model=os.path.basename(args.model),
        prompts=P,
        generations=G,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        eos_mean=args.eos_mean,
        beta=args.beta,
        micro_batch=args.micro_batch,
        rollout_logps=args.rollout_logps,
        step_s=C.med(steady),
        step_s_min=min(steady),
        cpu_s=C.med(cpu),
        rollout_s=C.med(gen_t[2:]),
        update_s=C.med(upd_t[2 * (P // mb) :]),
        first_step_s=(stamps[0] - t0) + d[0],
        compile_s=(stamps[0] - t0) + d[0] - C.med(steady),
        tokens_per_s=np.mean(lens) * P * G / C.med(gen_t[2:]),
        mean_len=float(np.mean(lens)),
        steps=len(d),
        versions=C.versions("jax", "jaxlib", "flax", "google-tunix"),
    )


if __name__ == "__main__":
    main()
