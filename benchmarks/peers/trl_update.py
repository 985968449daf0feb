#!/usr/bin/env python3
"""Seconds per GRPO update with HF TRL: loss on a given batch, backward, clip, AdamW.

Needs torch, trl.

  python trl_update.py --model models/nano --batch batch.npz

The trainer is built as in trl_grpo.py.  Its `_compute_loss` is called on the batch's micro-batches.
Nothing is scored before: with one update per batch, TRL takes the old log-probs from the update.
"""

import os
import tempfile
import warnings

import _common as C
import numpy as np

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
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_DISABLED", "true")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    if args.threads:
        torch.set_num_threads(args.threads)
    data = np.load(args.batch)
    n, longest = len(data["length"]), int(data["length"].max())
    mask = np.arange(longest)[None] < data["length"][:, None]
    micro = args.micro_batch or n
    model = AutoModelForCausalLM.from_pretrained(
        args.model, trust_remote_code=False, dtype=torch.float32
    )
    tok = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as out:
        cfg = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=n // micro,
            num_generations=8,
            max_completion_length=longest,
            max_steps=100,
            temperature=args.temperature,
            beta=args.beta,
            num_iterations=1,
            learning_rate=args.lr,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        ds = Dataset.from_dict({"prompt": ["x"] * n})
        reward = lambda completions, **kw: [0.0] * len(completions)  # noqa: E731
        tr = GRPOTrainer(
            model=model, reward_funcs=reward, args=cfg, train_dataset=ds, processing_class=tok
        )
        optimizer = torch.optim.AdamW(tr.model.parameters(), lr=args.lr, weight_decay=0.01)
        tr.current_gradient_accumulation_steps = n // micro
        tr.model.train()
        whole = {
            "prompt_ids": torch.tensor(data["prompt"]).long(),
            "prompt_mask": torch.ones(data["prompt"].shape, dtype=torch.long),
            "completion_ids": torch.tensor(data["response"][:, :longest]).long(),
            "completion_mask": torch.tensor(mask).long(),
            "advantages": torch.tensor(data["advantage"]).float(),
        }

        def update():
            for i in range(0, n, micro):
                part = {k: v[i : i + micro] for k, v in whole.items()}
                part["num_items_in_batch"] = torch.tensor(int(mask.sum()))
                tr._compute_loss(tr.model, part).backward()
            torch.nn.utils.clip_grad_norm_(tr.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        wall, cpu = C.timed_calls(update, args.steps)
    C.emit(
        bench="trl_update",
        update_s=C.med(wall),
        cpu_s=C.med(cpu),
        steps=args.steps,
        micro_batch=micro,
        versions=C.versions("torch", "transformers", "trl"),
    )


if __name__ == "__main__":
    main()
