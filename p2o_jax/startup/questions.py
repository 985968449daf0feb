"""The questions of a run or a command: files, benchmarks, and the built-in world's own."""

from collections.abc import Sequence

from p2o_jax.config import Config, ConfigError
from p2o_jax.data import benchmarks, sources
from p2o_jax.startup.model import WORLD
from p2o_jax.toy_world import questions as world_questions
from p2o_jax.types import Question


def load_questions(cfg: Config) -> sources.Loaded:
    """The questions of config.data.path."""
    if not cfg.data.path:
        raise ConfigError(
            "config.data.path is empty: name a file or folder of questions, hf:NAME or"
            " tfds:NAME@SPLIT"
        )
    if cfg.data.path == WORLD:
        return _of_world(world_questions.train_questions(cfg.world))
    return sources.load(cfg.data.path, cfg.data, hint_field=cfg.data.hint_field)


def load_heldout(cfg: Config) -> list[sources.Loaded]:
    """The sets of config.data.eval_path, the dev set first; the world's own, or none, where it
    names none.
    """
    if cfg.data.eval_path:
        return load_sets(cfg, cfg.data.eval_path)
    return [_heldout_of_world(cfg)] if cfg.data.path == WORLD else []


def load_sets(cfg: Config, text: str, where: str = "config.data.eval_path") -> list[sources.Loaded]:
    """The sets of a list such as config.data.eval_path; see `benchmarks.load_sets`.

    In the list, `world` stands for the held-out questions of the built-in world, and `world:NAME`
    for those of a set of `toy_world.questions.ELSEWHERE`, as in `longer=world:longer`.
    """
    built_in = {
        WORLD: lambda: _heldout_of_world(cfg),
        **{
            f"{WORLD}:{name}": lambda name=name: _of_world(
                world_questions.elsewhere_questions(cfg.world, name)
            )
            for name in world_questions.ELSEWHERE
        },
    }
    return benchmarks.load_sets(text, cfg.data, where, built_in)


def _heldout_of_world(cfg: Config) -> sources.Loaded:
    return _of_world(world_questions.heldout_questions(cfg.world))


def _of_world(questions: Sequence[Question]) -> sources.Loaded:
    return sources.Loaded(WORLD, tuple(questions), 0, tuple(range(1, len(questions) + 1)))
