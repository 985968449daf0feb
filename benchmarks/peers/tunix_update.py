#!/usr/bin/env python3
"""Seconds per GRPO update with Tunix: `RLCluster.update_actor` on a given batch.

Covers loss, backward and AdamW.

  JAX_PLATFORMS=cpu python tunix_update.py --model models/nano --batch batch.npz

The learner is built as in tunix_grpo.py.  Nothing is scored before: with one iteration, Tunix takes
the old log-probs from the update.  Completions are padded to R, as its rollouts are.
"""

import logging
import warnings

import _common as C
import numpy as np
import tunix_generate as TG

warnings.filterwarnings("ignore")


def main():
    ap = C.base_parser(__doc__, grpo=True)
    ap.add_argument(
        "--batch",
        required=True,
        help=".npz with prompt [N, P], response [N, R], length [N], advantage [N]",
    )
    args = ap.parse_args()
    C.pin(args)
    model, _, mesh, tok, _ = TG.load(args.model)
    import jax
    import jax.numpy as jnp
    import optax
    from tunix.rl import rl_cluster as rlc
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    logging.disable(logging.WARNING)
    data = np.load(args.batch)
    n, P, R = len(data["length"]), data["prompt"].shape[1], data["response"].shape[1]
    micro = args.micro_batch or n
    tc = rlc.RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(args.lr, weight_decay=0.01)
        ),
        eval_every_n_steps=10**9,
        max_steps=10**6,
        mini_batch_size=n // 8,
        train_micro_batch_size=micro // 8,
        rollout_micro_batch_size=n // 8,
        compute_logps_micro_batch_size=n // 8,
    )
    rc = base_rollout.RolloutConfig(
        max_tokens_to_generate=R,
        max_prompt_length=P,
        kv_cache_size=P + R,
        temperature=args.temperature,
        top_p=1.0,
        eos_tokens=[-1],
    )
    roles = {rlc.Role.ACTOR: mesh, rlc.Role.REFERENCE: mesh, rlc.Role.ROLLOUT: mesh}
    cc = rlc.ClusterConfig(
        role_to_mesh=roles,
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=tc,
        rollout_config=rc,
    )
    mask = np.arange(R)[None] < data["length"][:, None]
    with mesh:
        cl = rlc.RLCluster(actor=model, reference=None, tokenizer=tok, cluster_config=cc)
        grpo_learner.GRPOLearner(
            rl_cluster=cl,
            reward_fns=lambda prompts, completions, **kw: [0.0] * len(completions),
            algo_config=grpo_learner.GRPOConfig(
                num_generations=8, num_iterations=1, beta=args.beta, epsilon=0.2
            ),
        )
        examples = [
            grpo_learner.TrainExample(
                prompt_ids=jnp.asarray(data["prompt"][i : i + micro], jnp.int32),
                prompt_mask=jnp.ones((micro, P), bool),
                completion_ids=jnp.asarray(data["response"][i : i + micro], jnp.int32),
                completion_mask=jnp.asarray(mask[i : i + micro]),
                advantages=jnp.asarray(data["advantage"][i : i + micro], jnp.float32),
                ref_per_token_logps=None,
                old_per_token_logps=None,
            )
            for i in range(0, n, micro)
        ]

        def update():
            cl.update_actor(examples, None)
            jax.block_until_ready(jax.tree.leaves(nnx_state(cl.actor_trainer.model)))

        wall, cpu = C.timed_calls(update, args.steps)
    C.emit(
        bench="tunix_update",
        update_s=C.med(wall),
        cpu_s=C.med(cpu),
        steps=args.steps,
        micro_batch=micro,
        versions=C.versions("jax", "jaxlib", "flax", "google-tunix"),
    )


def nnx_state(model):
    from flax import nnx

    return nnx.state(model)


if __name__ == "__main__":
    main()
