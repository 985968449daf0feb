#!/usr/bin/env python3
"""Tunix vanilla sampler throughput.  Needs google-tunix, jax (CPU is fine).

  JAX_PLATFORMS=cpu python tunix_generate.py --model models/nano

The cache is exactly prompt+new tokens (the best case for Tunix; its GRPO
recipes add 256 slots: --cache-slack 256).
"""

import os
import time
import warnings

import _common as C
import numpy as np

warnings.filterwarnings("ignore", category=DeprecationWarning)


def load(path, dtype="float32", **over):
    """-> (model, tunix config, mesh, tokenizer, hf config dict)"""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import jax
    from transformers import AutoTokenizer
    from tunix.models.qwen3 import model as qwen3
    from tunix.models.qwen3 import params as qwen3_params

    dtype = jax.numpy.dtype(dtype)
    c = C.model_config(path)
    cfg = qwen3.ModelConfig(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["head_dim"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=int(c["rope_theta"]),
        norm_eps=c["rms_norm_eps"],
        use_tied_embedding=c["tie_word_embeddings"],
        dtype=dtype,
        param_dtype=dtype,
        **over,
    )
    devs = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devs).reshape(len(devs), 1), ("fsdp", "tp"))
    with mesh:
        model = qwen3_params.create_model_from_safe_tensors(path, cfg, mesh, dtype=dtype)
    tok = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return model, cfg, mesh, tok, c


def texts(tok, ids):
    return [" ".join(tok.convert_ids_to_tokens([int(t) for t in row])) for row in ids]


def main():
    ap = C.base_parser(__doc__)
    ap.add_argument("--cache-slack", type=int, default=0)
    ap.add_argument("--logprobs", action="store_true")
    args = ap.parse_args()
    C.pin(args)
    from tunix.generate import sampler as sampler_lib

    t0 = time.perf_counter()
    model, cfg, mesh, tok, hf = load(args.model)
    load_s = time.perf_counter() - t0
    stop = C.eos_ids(args, hf)
    smp = sampler_lib.Sampler(
        model,
        tok,
        sampler_lib.CacheConfig(
            cache_size=args.prompt_len + args.new_tokens + args.cache_slack,
            num_layers=cfg.num_layers,
            num_kv_heads=cfg.num_kv_heads,
            head_dim=cfg.head_dim,
        ),
    )

    def once(seed):
        ids = C.prompt_ids(args.batch // args.group, args.prompt_len, hf["vocab_size"], seed)
        strs = [s for s in texts(tok, ids) for _ in range(args.group)]
        t, c = time.perf_counter(), time.process_time()
        with mesh:
            out = smp(
                strs,
                max_generation_steps=args.new_tokens,
                max_prompt_length=args.prompt_len,
                temperature=args.temperature,
                top_p=1.0,
                seed=seed,
                return_logprobs=args.logprobs,
                eos_tokens=stop or [-1],
            )
        dt, dc = time.perf_counter() - t, time.process_time() - c
        # Tunix strips the stop token; count it, as the other scripts do.
        return dt, dc, [min(len(x) + (1 if stop else 0), args.new_tokens) for x in out.tokens]

    first, _, _ = once(args.seed)
    runs = [once(args.seed + 1 + i) for i in range(args.repeats)]
    rates = [sum(n) / dt for dt, _, n in runs]
    dts = [r[0] for r in runs]
    C.emit(
        bench="tunix_generate",
        model=os.path.basename(args.model),
        batch=args.batch,
        group=args.group,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        eos_mean=args.eos_mean,
        cache_slack=args.cache_slack,
        logprobs=args.logprobs,
        tokens_per_s=C.med(rates),
        tokens_per_s_max=max(rates),
        cpu_s=C.med([r[1] for r in runs]),
        step_s=C.med(dts),
        first_call_s=first,
        compile_s=max(0.0, first - C.med(dts)),
        load_s=load_s,
        mean_len=C.med([sum(n) / len(n) for _, _, n in runs]),
        max_len=max(max(n) for _, _, n in runs),
        versions=C.versions("jax", "jaxlib", "flax", "google-tunix"),
    )


if __name__ == "__main__":
    main()
