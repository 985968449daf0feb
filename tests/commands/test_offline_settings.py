"""The prompt settings that an exported model carries, read by the other commands."""

import json

import pytest

from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.offline.evaluate import EvaluateOptions, evaluation_config
from p2o_jax.offline.export import prompt_settings
from p2o_jax.offline.policy import ModelSource
from p2o_jax.offline.settings import ALL_SETTINGS, CHAT_SETTINGS, exported_settings
from p2o_jax.runtime import distributed

RUN = config.Config(
    chat=config.ChatConfig(system_prompt="Be brief.", enable_thinking=True),
    data=config.DataConfig(prompt_template="Now {question}"),
)


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "p2o_jax.json").write_text(json.dumps(prompt_settings(RUN)))
    return tmp_path


def test_an_export_is_evaluated_with_the_prompts_of_its_run(exported, monkeypatch):
    monkeypatch.setattr(distributed, "start", lambda mesh, compile_cache: 8)
    options = EvaluateOptions(exported / "out", "aime24", ModelSource(model=str(exported)))
    cfg = evaluation_config(options)
    assert (cfg.chat, cfg.data.prompt_template) == (RUN.chat, "Now {question}")
    given = [("chat.system_prompt", "Mine."), ("data.prompt_template", "{question}")]
    cfg = evaluation_config(options._replace(overrides=given))
    assert (cfg.chat.system_prompt, cfg.data.prompt_template) == ("Mine.", "{question}")


def test_generate_takes_the_chat_settings_and_asks_prompts_as_they_stand(exported):
    assert exported_settings(str(exported), CHAT_SETTINGS) == {
        "chat.system_prompt": "Be brief.",
        "chat.enable_thinking": "True",
    }


def test_other_models_have_none_and_wrong_values_are_named(tmp_path):
    assert exported_settings(str(tmp_path), ALL_SETTINGS) == {}
    assert exported_settings("owner/model", ALL_SETTINGS) == {}
    (tmp_path / "p2o_jax.json").write_text('{"system_prompt": 1, "enable_thinking": "yes"}')
    with pytest.raises(ConfigError) as e:
        exported_settings(str(tmp_path), ALL_SETTINGS)
    assert [line.rpartition(": expected")[0] for line in e.value.problems] == [
        f"{tmp_path / 'p2o_jax.json'}: system_prompt=1",
        f"{tmp_path / 'p2o_jax.json'}: enable_thinking='yes'",
    ]
