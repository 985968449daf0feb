"""Everything beside the weights in a Hugging Face directory; above all config.json, read into a
`ModelSpec` and written back.

Both common layouts are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and
transformers 5 (`rope_parameters`, `dtype`). Settings that are not implemented are rejected by name,
never ignored.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2o_jax.config import ConfigError
from p2o_jax.models import hf_keys
from p2o_jax.models.families import COMPOSITES, FAMILIES
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import write_rope
from p2o_jax.models.spec import ModelSpec

MAX_POSITIONS = 32768  # written for a spec without max_positions
# our name of each activation in config.json
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model",
)  # fmt: skip
PROMPTS = "p2o_jax.json"  # in an export: parts of the run's prompts besides the chat template
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def locate(path: str | Path, revision: str | None = None) -> Path:
    """Returns the directory of a checkpoint: the path itself, or the local copy of a hub id,
    downloaded if needed.

    `revision` is a commit of the hub's repository; None: its newest.

    Raises:
        ConfigError: neither a directory nor an available hub id.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) or str(path)[0] in ".~":
        raise ConfigError(f"{path}: no such directory")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(path), revision=revision, allow_patterns=_HUB_FILES
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ConfigError(
            f"{path}: no such directory, and it could not be downloaded from the Hugging Face hub"
            f" ({reason}). Without a network, give the path of a directory that holds config.json,"
            " the *.safetensors files and the tokenizer"
        ) from e


def revision(directory: Path) -> str | None:
    """Returns the hub commit of a snapshot directory from `locate`; None for any other
    directory.
    """
    return (
        directory.name
        if directory.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", directory.name)
        else None
    )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ConfigError: the file is missing, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: no such file") from e
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: cannot be read as JSON ({e})") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes the object as indented JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_files(directory: Path | None) -> list[Path]:
    """Returns the files of the directory's tokenizer, including its chat template.

    Raises:
        ConfigError: there is none.
    """
    if directory is None:
        return []
    files = sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)})
    if not files:
        raise ConfigError(f"{directory}: holds no tokenizer")
    return files


def write_beside(
    target: Path,
    tokenizer_dir: Path | None,
    generation_config: dict[str, Any],
    chat_template: str = "",
    prompts: dict[str, Any] | None = None,
) -> None:
    """Writes the files that belong beside a policy's weights and config.json.

    Args:
        target: the directory to write into.
        tokenizer_dir: the directory whose tokenizer is copied.
        generation_config: contents of generation_config.json.
        chat_template: replaces the tokenizer's own, in the file that transformers (and so vLLM)
            reads first.
        prompts: parts of the run's prompts besides the chat template, for p2o_jax.json.

    Raises:
        ConfigError: `tokenizer_dir` holds no tokenizer.
    """
    for file in tokenizer_files(tokenizer_dir):
        shutil.copyfile(file, target / file.name)
    if chat_template:
        settings = target / "tokenizer_config.json"
        if settings.exists():  # some programs prefer the template in this file
            write_json(
                settings,
                {
                    key: value
                    for key, value in read_json(settings).items()
                    if key != "chat_template"
                },
            )
        (target / "chat_template.json").unlink(missing_ok=True)
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    write_json(target / "generation_config.json", generation_config)
    if prompts:
        write_json(target / PROMPTS, prompts)


def token_ids(directory: Path, stop_ids: Sequence[int], pad_id: int) -> dict[str, Any]:
    """Returns the model's generation_config.json for a policy that was trained to end with
    `stop_ids`.
    """
    model = read_json(directory / "config.json")
    generation = {"bos_token_id": model.get("bos_token_id"), **generation_config(None, directory)}
    # with this key, transformers overrides the file
    generation.pop("_from_model_config", None)
    return generation | {
        "eos_token_id": list(stop_ids) if len(stop_ids) > 1 else stop_ids[0],
        "pad_token_id": pad_id,
    }


def generation_config(given: dict[str, Any] | None, tokenizer_dir: Path | None) -> dict[str, Any]:
    """Returns generation_config.json of an export: the given one, else the one beside the
    tokenizer, else an empty one.
    """
    if (
        given is None
        and tokenizer_dir is not None
        and (tokenizer_dir / "generation_config.json").exists()
    ):
        return read_json(tokenizer_dir / "generation_config.json")
    return given or {"_from_model_config": True}


def read_spec(directory: str | Path) -> ModelSpec:
    """Returns the model that config.json in the directory describes; of a checkpoint of several
    models, the text model.

    Raises:
        ConfigError: with a line for everything that is missing, mistyped or not supported.
    """
    path = Path(directory) / "config.json"
    values = text_values(read_json(path))
    name = values.get("model_type")
    if name not in FAMILIES:
        raise ConfigError(
            f"{path}: model_type={name!r} is not supported; supported:"
            f" {_names([*FAMILIES, *COMPOSITES])}"
        )
    spec, problems = spec_of(values)
    if problems:
        raise ConfigError(*(f"{path}: {p}" for p in problems))
    return spec


def text_values(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of the text model in config.json: all of them, or those in text_config
    of a checkpoint of several models.
    """
    inner, name = values.get("text_config"), values.get("model_type")
    if name not in COMPOSITES or not isinstance(inner, dict):
        return values
    # of both, the outer setting applies
    outer = {k: values[k] for k in ("tie_word_embeddings", "quantization_config") if k in values}
    family = inner.get("model_type", COMPOSITES[name])
    architectures = [FAMILIES[family].architecture] if family in FAMILIES else []
    return {**inner, **outer, "model_type": family, "architectures": architectures}


def notices(directory: Path) -> list[str]:
    """Returns a line if only a part of the checkpoint is read."""
    values = read_json(directory / "config.json")
    if values.get("model_type") not in COMPOSITES:
        return []
    return [
        f"{directory}: only the text model of {values['model_type']} is used"
        f" ({text_values(values)['model_type']}); images are not supported, and exports leave out"
        " their part"
    ]


def spec_of(values: dict[str, Any]) -> tuple[ModelSpec, list[str]]:
    """Returns the model of a supported family that these values of config.json describe, and a line
    for every problem.
    """
    family = FAMILIES[values["model_type"]]
    fields = Fields(values, defaults=family.defaults)
    fields.problems += hf_keys.problems(values)
    heads = fields.integer("num_attention_heads")
    width = fields.integer("hidden_size")
    max_positions = fields.integer("max_position_embeddings")
    spec = ModelSpec(
        family=family.name,
        vocab=fields.integer("vocab_size"),
        width=width,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer(
            "num_key_value_heads",
            heads if family.kv_heads_default or "num_key_value_heads" in values else None,
        ),
        head_dim=fields.integer("head_dim", width // heads),
        mlp=fields.integer("intermediate_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=fields.choice(family.activation, ACTIVATIONS, "silu"),
        tied=fields.flag("tie_word_embeddings"),
        max_positions=max_positions,
        **family.read(fields, max_positions),
    )
    problems = list(dict.fromkeys(fields.problems))
    return spec, problems or _impossible(spec)


def write_config(
    spec: ModelSpec, dtype: str = "bfloat16", token_ids: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Returns config.json for the model, in the layout of transformers 4, which transformers 5 also
    reads; for families that are younger, in that of transformers 5.

    `token_ids` may hold bos_token_id, eos_token_id (an id or a list) and pad_token_id; other keys
    are ignored.

    Raises:
        ConfigError: the family has no such variant (such as biases of the MLP in Qwen3).
    """
    family = FAMILIES[spec.family]
    ids = token_ids or {}
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == spec.activation)
    config = {
        "architectures": [family.architecture],
        "attention_dropout": 0.0,
        "bos_token_id": ids.get("bos_token_id"),
        "eos_token_id": ids.get("eos_token_id"),
        "pad_token_id": ids.get("pad_token_id"),
        "hidden_act": activation,
        "hidden_size": spec.width,
        "initializer_range": 0.02,
        "intermediate_size": spec.mlp,
        "max_position_embeddings": spec.max_positions or MAX_POSITIONS,
        "model_type": spec.family,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_scaling": write_rope(spec.rope, spec.max_positions),
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": spec.vocab,
        **({"head_dim": spec.head_dim} if spec.head_dim * spec.heads != spec.width else {}),
        **family.write(spec),
    }
    config = {key: value for key, value in config.items() if key != "rope_theta" or value}
    if lost := _not_written(spec, config):
        raise ConfigError(f"a {spec.family} model with {lost} has no Hugging Face architecture")
    return config


def _not_written(spec: ModelSpec, config: dict[str, Any]) -> str:
    """Returns the fields of the spec that config.json does not describe, with their values."""
    described, _ = spec_of(config)
    names = [
        f.name
        for f in dataclasses.fields(spec)
        if f.name not in ("rope", "max_positions", "padded_vocab", "lora")
        and getattr(spec, f.name) != getattr(described, f.name)
    ]
    return ", ".join(f"{name}={getattr(spec, name)}" for name in names)


def _impossible(spec: ModelSpec) -> list[str]:
    """Returns a line for every rule between sizes that the spec breaks."""
    lines = []
    if spec.heads % spec.kv_heads:
        lines.append(
            f"num_key_value_heads={spec.kv_heads} must divide num_attention_heads={spec.heads}"
        )
    if spec.head_dim % 2 or spec.head_dim < 2:
        lines.append(f"head_dim={spec.head_dim} must be even and positive")
    return lines


def _names(names: Any) -> str:
    return ", ".join(map(str, names))
