#!/usr/bin/env python3
"""Seconds per GRPO step with HF TRL's GRPOTrainer.  Needs torch, trl.

  python trl_grpo.py --model models/nano

One step = 8 prompts x 8 generations x 128 new tokens, trivial reward
(number of distinct words), one AdamW update.  A step is timed from one reward
call to the next, as in tunix_grpo.py.  Gradient checkpointing (TRL's default)
is off unless asked for, beta defaults to 0 (no reference pass).
"""

import os
import tempfile
import time
import warnings

import _common as C
import numpy as np

warnings.filterwarnings("ignore")


def main():
    ap = C.base_parser(__doc__, grpo=True)
    ap.add_argument("--gradient-checkpointing", action="store_true")
    ap.add_argument(
        "--continuous-batching",
        action="store_true",
        help="use_transformers_continuous_batching=True",
    )
    args = ap.parse_args()
    C.pin(args)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_DISABLED", "true")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    if args.threads:
        torch.set_num_threads(args.threads)

    hf = C.model_config(args.model)
    stop = C.eos_ids(args, hf)
    tok = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    P, G = args.prompts, args.generations
    ids = C.prompt_ids(P * (args.steps + 1), args.prompt_len, hf["vocab_size"], args.seed)
    ds = Dataset.from_dict(
        {"prompt": [" ".join(tok.convert_ids_to_tokens([int(t) for t in r])) for r in ids]}
    )
    model = AutoModelForCausalLM.from_pretrained(
        args.model, trust_remote_code=False, dtype=torch.float32
    )
    model.generation_config.eos_token_id = stop or None
    stamps, cstamps, lens, gen_t = [], [], [], []

    def reward(prompts, completions, completion_ids=None, **kw):
        stamps.append(time.perf_counter())
        cstamps.append(time.process_time())
        if completion_ids is not None:
            lens.extend(len(x) for x in completion_ids)
        return [float(len(set(c.split()))) for c in completions]

    per = args.micro_batch or P * G
    acc = P * G // per
    kw = {}
    if args.continuous_batching:
        kw["use_transformers_continuous_batching"] = True
    with tempfile.TemporaryDirectory() as out:
        cfg = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=per,
            gradient_accumulation_steps=acc,
            num_generations=G,
            max_completion_length=args.new_tokens,
            max_steps=args.steps,
            temperature=args.temperature,
            top_p=1.0,
            top_k=0,
            beta=args.beta,
            num_iterations=1,
            learning_rate=args.lr,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=args.gradient_checkpointing,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            seed=args.seed,
            generation_kwargs={"eos_token_id": stop or None},
            **kw,
        )
        tr = GRPOTrainer(
            model=model, reward_funcs=reward, args=cfg, train_dataset=ds, processing_class=tok
        )
        tr.eos_token_ids = stop or [-1]  # drop the tokenizer's own EOS
        tr.generation_config.eos_token_id = stop or None
        f = tr._generate_single_turn

        def timed(*a, **k):
            t = time.perf_counter()
            r = f(*a, **k)
            gen_t.append(time.perf_counter() - t)
            return r

        tr._generate_single_turn = timed
        t0 = time.perf_counter()
        tr.train()
    d, dc = np.diff(stamps).tolist(), np.diff(cstamps).tolist()
    steady, cpu = d[1:], dc[1:]
    C.emit(
        bench="trl_grpo",
        model=os.path.basename(args.model),
        prompts=P,
        generations=G,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        eos_mean=args.eos_mean,
        beta=args.beta,
        micro_batch=args.micro_batch,
        threads=torch.get_num_threads(),
        gradient_checkpointing=args.gradient_checkpointing,
        continuous_batching=args.continuous_batching,
        step_s=C.med(steady),
        step_s_min=min(steady),
        cpu_s=C.med(cpu),
        rollout_s=C.med(gen_t[2:]),
        update_s=C.med(steady) - C.med(gen_t[2:]),
        first_step_s=stamps[0] - t0 + d[0],
        compile_s=max(0.0, stamps[0] - t0 + d[0] - C.med(steady)),
        tokens_per_s=float(np.mean(lens)) * P * G / C.med(gen_t[2:]),
        mean_len=float(np.mean(lens)),
        steps=len(d),
        versions=C.versions("torch", "transformers", "trl"),
    )


if __name__ == "__main__":
    main()
