#!/usr/bin/env python3
"""HF transformers `generate` sampling throughput.  Needs torch, transformers.

python hf_generate.py --model models/nano
python hf_generate.py --model models/nano --eos-mean 48 --new-tokens 256
python hf_generate.py --model ... --cache static --compile
"""

import os
import time

import _common as C


def main():
    ap = C.base_parser(__doc__)
    ap.add_argument("--attn", default="sdpa", choices=["sdpa", "eager"])
    ap.add_argument("--cache", default="dynamic", choices=["dynamic", "static"])
    ap.add_argument(
        "--compile",
        action="store_true",
        help="let generate() compile the decode step (static cache)",
    )
    args = ap.parse_args()
    C.pin(args)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from transformers import AutoModelForCausalLM

    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = C.model_config(args.model)
    stop = C.eos_ids(args, cfg)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, trust_remote_code=False, dtype=torch.float32, attn_implementation=args.attn
    ).eval()
    model.generation_config.eos_token_id = stop or None
    model.generation_config.pad_token_id = cfg["pad_token_id"]
    kw = {
        "do_sample": True,
        "temperature": args.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": args.new_tokens,
    }
    if args.cache == "static":
        kw["cache_implementation"] = "static"
        kw["disable_compile"] = not args.compile

    def once(seed):
        ids = C.prompt_ids(args.batch // args.group, args.prompt_len, cfg["vocab_size"], seed)
        x = torch.from_numpy(ids).repeat_interleave(args.group, 0)
        torch.manual_seed(seed)
        t, c = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            y = model.generate(input_ids=x, attention_mask=torch.ones_like(x), **kw)
        dt, dc = time.perf_counter() - t, time.process_time() - c
        return dt, dc, C.lengths_until(y[:, args.prompt_len :].numpy(), stop)

    first, _, _ = once(args.seed)
    runs = [once(args.seed + 1 + i) for i in range(args.repeats)]
    rates = [sum(n) / dt for dt, _, n in runs]
    C.emit(
        bench="hf_generate",
        model=os.path.basename(args.model),
        batch=args.batch,
        group=args.group,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        eos_mean=args.eos_mean,
        attn=args.attn,
        cache=args.cache,
        compile=args.compile,
        threads=torch.get_num_threads(),
        tokens_per_s=C.med(rates),
        tokens_per_s_max=max(rates),
        cpu_s=C.med([r[1] for r in runs]),
        step_s=C.med([r[0] for r in runs]),
        first_call_s=first,
        compile_s=max(0.0, first - C.med([r[0] for r in runs])),
        mean_len=C.med([sum(n) / len(n) for _, _, n in runs]),
        max_len=max(max(n) for _, _, n in runs),
        versions=C.versions("torch", "transformers"),
    )


if __name__ == "__main__":
    main()
