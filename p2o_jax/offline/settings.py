"""The config of a command that does not train, and the prompt settings that an export carries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, TrainConfig, loading
from p2o_jax.models import hf_config
from p2o_jax.runtime import distributed

Overrides = Sequence[tuple[str, str]]  # of settings: (key, text), as given on the command line
CHAT_SETTINGS = {"system_prompt": str, "enable_thinking": bool}  # of an export, in config.chat
ALL_SETTINGS = {**CHAT_SETTINGS, "prompt_template": str}  # the last one in config.data


def command_config(base: Config, defaults: Mapping[str, str], overrides: Overrides) -> Config:
    """Starts JAX, and returns the config of a command that does not train.

    JAX is started by `config.mesh`, so that the number of devices, on which some defaults depend,
    is that of the mesh.

    Args:
        base: what the defaults are put into.
        defaults: the command's own, by key; `overrides` take precedence.

    Raises:
        ConfigError: with a line for every override that is no setting or has the wrong type.
    """
    values: Any = loading.to_config_dict(base)
    loading.override(values, [(key, text) for key, text in overrides if key.startswith("mesh.")])
    # never that of a run directory, which may come from somebody else: programs in it are run
    cache = dict(overrides).get("train.compile_cache", TrainConfig().compile_cache)
    num_devices = str(distributed.start(values.mesh, cache))
    without_training = {
        "arms": "()",
        "gepa.enabled": "false",
        "lora.rank": "0",
        "optim.micro_rows": num_devices,  # every mesh divides it
        "train.router_replay": "false",  # nobody reads what the sampler would record
        "rollout.slots": num_devices,
    }
    loading.override(values, [*(without_training | dict(defaults)).items(), *overrides])
    return config.resolve(loading.from_config_dict(values))


def exported_settings(model: str, expected: Mapping[str, type]) -> dict[str, str]:
    """The settings in the p2o_jax.json of an exported model, as overrides; none of another model.

    Args:
        expected: the fields to read, CHAT_SETTINGS or ALL_SETTINGS.

    Raises:
        ConfigError: with a line for every field of the wrong type.
    """
    path = Path(model).expanduser() / hf_config.PROMPTS
    if not model or not path.is_file():
        return {}
    values = hf_config.read_json(path)
    problems = [
        f"{path}: {name}={values[name]!r}: expected a {kind.__name__}"
        for name, kind in expected.items()
        if name in values and type(values[name]) is not kind
    ]
    if problems:
        raise ConfigError(*problems)
    return {
        f"{'chat' if name in CHAT_SETTINGS else 'data'}.{name}": str(values[name])
        for name in expected
        if name in values
    }
