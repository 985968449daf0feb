#!/usr/bin/env python3
"""Write a tiny random-init Qwen3-architecture model (HF format) + tokenizer.

Needs: numpy, safetensors, tokenizers, transformers (no torch, no jax).

  python make_model.py --size nano  --out models/nano
  python make_model.py --size small --out models/small

The tokenizer is WordLevel over synthetic words split on whitespace, so one
word is exactly one token and a prompt of N words is a prompt of N tokens in
every framework.  Weights are float32, std 0.02, tied embeddings.  The chat
template is the ChatML form Qwen uses.
"""

import argparse
import json
import os

import numpy as np

SIZES = {
    "nano": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
        "vocab_size": 4096,
    },
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 8192,
    },
}
SPECIALS = ["<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} "
    "<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|> "
    "assistant {% endif %}"
)


def build_vocab(n):
    toks = list(SPECIALS) + ["system", "user", "assistant"]
    toks += list("0123456789+-*/=().,?:")
    cons, vow = "bcdfghjklmnprstvz", "aeiou"
    syl = [c + v for c in cons for v in vow]
    i = 0
    while len(toks) < n:
        a, b, c = i % len(syl), (i // len(syl)) % len(syl), i // len(syl) ** 2
        toks.append(syl[b] + syl[a] + (syl[c] if c else ""))
        i += 1
    assert len(set(toks)) == n, "duplicate words"
    return {t: k for k, t in enumerate(toks)}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--size", choices=sorted(SIZES), default="nano")
    ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--rope-theta", type=float, default=1_000_000.0)
    args = ap.parse_args()
    if os.path.isdir(args.out) and os.listdir(args.out):
        ap.error(f"--out={args.out}: exists and is not empty")
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    c = SIZES[args.size]
    os.makedirs(args.out, exist_ok=True)
    vocab = build_vocab(c["vocab_size"])

    tok = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.padding_side = "left"
    fast.save_pretrained(args.out)

    rng = np.random.default_rng(args.seed)
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    nh, nk, h = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    def w(*s):
        return (rng.standard_normal(s) * 0.02).astype(np.float32)

    def one(n):
        return np.ones((n,), np.float32)

    t = {"model.embed_tokens.weight": w(v, d), "model.norm.weight": one(d)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t.update(
            {
                p + "input_layernorm.weight": one(d),
                p + "post_attention_layernorm.weight": one(d),
                p + "self_attn.q_proj.weight": w(nh * h, d),
                p + "self_attn.k_proj.weight": w(nk * h, d),
                p + "self_attn.v_proj.weight": w(nk * h, d),
                p + "self_attn.o_proj.weight": w(d, nh * h),
                p + "self_attn.q_norm.weight": one(h),
                p + "self_attn.k_norm.weight": one(h),
                p + "mlp.gate_proj.weight": w(f, d),
                p + "mlp.up_proj.weight": w(f, d),
                p + "mlp.down_proj.weight": w(d, f),
            }
        )
    save_file(t, os.path.join(args.out, "model.safetensors"), metadata={"format": "pt"})
    cfg = dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        attention_bias=False,
        attention_dropout=0.0,
        hidden_act="silu",
        initializer_range=0.02,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=args.rope_theta,
        rope_scaling=None,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=0,
        tie_word_embeddings=True,
        torch_dtype="float32",
        use_cache=True,
        bos_token_id=None,
        eos_token_id=vocab["<|im_end|>"],
        pad_token_id=vocab["<|pad|>"],
        **c,
    )
    with open(os.path.join(args.out, "config.json"), "w") as fh:
        json.dump(cfg, fh, indent=1)
    with open(os.path.join(args.out, "generation_config.json"), "w") as fh:
        json.dump({"eos_token_id": cfg["eos_token_id"], "pad_token_id": cfg["pad_token_id"]}, fh)
    print(
        json.dumps(
            {"out": args.out, "size": args.size, "params": int(sum(x.size for x in t.values()))}
        )
    )


if __name__ == "__main__":
    main()
