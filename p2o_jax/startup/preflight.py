"""Opens all that a run needs, and reports together what is wrong with it, before anything
compiles.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, gepa_rules, reward_terms, rules
from p2o_jax.data import seed_templates, sources
from p2o_jax.data.chat import Chat
from p2o_jax.data.seed_templates import Seed
from p2o_jax.gepa import api, reflection
from p2o_jax.models import lora
from p2o_jax.models.spec import Weight, weights
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.runtime import distributed
from p2o_jax.runtime.console import Reporter
from p2o_jax.runtime.listing import shortened
from p2o_jax.startup import limits, run_directory
from p2o_jax.startup.model import WORLD, Model, collect, open_model
from p2o_jax.startup.questions import load_heldout, load_questions
from p2o_jax.startup.run_directory import RunDirectory
from p2o_jax.tracking import disk_space, writers
from p2o_jax.types import Question


def open_run(
    cfg: Config, directory: RunDirectory, reporter: Reporter
) -> tuple[Model, sources.Loaded, list[sources.Loaded]]:
    """The model, the training questions and the held-out sets; nothing is written before all of it
    is known to be good.

    Raises:
        ConfigError: with a line for everything wrong with config, workdir, mesh, model directory
            and data files.
    """
    problems = [
        *rules.problems(cfg, len(jax.devices())),
        *directory.problems,
        *directory.changed_settings(cfg),
    ]
    train, heldout, seeds = (
        collect(problems, lambda: load_questions(cfg)),
        collect(problems, lambda: load_heldout(cfg)) or [],
        collect(problems, lambda: load_seeds(cfg)) or (),
    )
    problems += changed_data(cfg, directory, train, heldout)
    if (cfg.data.path == WORLD) != (cfg.model.path == WORLD):
        problems.append(
            f"config.data.path={cfg.data.path} with config.model.path={cfg.model.path}: the"
            " built-in world's questions and its base model only go together; give both, or"
            " neither"
        )
    if config.reflector(cfg) == "api":
        problems += distributed.broadcast_from_main(lambda: key_problems(cfg.api))
    problems += (
        distributed.broadcast_from_main(lambda: reward_problems(cfg.reward))
        if cfg.reward.fn
        else []
    )
    problems += distributed.broadcast_from_main(lambda: writers.problems(cfg))
    if problems and cfg.model.path == WORLD:  # which would be pretrained first
        raise ConfigError(*problems)
    model = checked_model(problems, cfg, reporter, directory)
    if model:
        problems += length_problems(cfg, model, train, heldout)
        problems += seed_problems(cfg, model.chat, seeds, train)
    num_steps = cfg.train.epochs * -(
        -len(train.questions if train else ()) // max(cfg.rollout.questions, 1)
    )
    space = (
        (lambda: space_problems(cfg, directory, model, num_steps)) if model and train else list[str]
    )
    problems += distributed.broadcast_from_main(space)
    opened, questions = require(problems, model, train)
    notices = [
        *rules.notices(cfg),
        *seed_notices(cfg, opened.chat, seeds),
        *directory.notices(cfg, questions, *heldout),
        *(line for part in (questions, *heldout) for line in part.notices),
        *sources.shared(questions, heldout),
        *prompts_without_box(cfg, (questions, *heldout)),
    ]
    for line in notices:
        reporter.line(line)
    return opened, questions, heldout


def prompts_without_box(cfg: Config, parts: Sequence[sources.Loaded]) -> list[str]:
    """A line for each set whose prompts do not say where the grader looks for the answer."""
    asks = "boxed" in cfg.chat.system_prompt or not reward_terms.compares_answers(cfg.reward.fn)
    lines = []
    for part in parts if not asks else ():
        bare = [
            q
            for q in part.questions
            if not any("boxed" in m["content"] or "<answer>" in m["content"] for m in q.messages)
        ]
        if bare and part.path != WORLD:
            lines.append(
                f"{part.path}: {len(bare):,} of {len(part.questions):,} prompts do not ask for a"
                " \\boxed{} answer, and only boxes are graded (config.data.prompt_template for"
                " questions that are texts, config.chat.system_prompt for chats)"
            )
    return lines


def length_problems(
    cfg: Config,
    model: Model,
    train: sources.Loaded | None,
    heldout: Sequence[sources.Loaded],
) -> list[str]:
    """A line for each prompt, reflection prompt, hint or row that is too long for the model or the
    settings.
    """
    problems = []
    parts = [part for part in (train, *heldout) if part]
    for part in parts:
        problems += sources.too_long(
            part, lambda q: len(model.chat.render(q)), cfg.data.max_prompt_tokens
        )
    if config.reflector(cfg):
        problems += reflection_problems(cfg, model.chat, train.questions if train else ())
    problems += hint_problems(cfg, model.chat, train)
    lengths = [len(model.chat.render(q)) for part in parts for q in part.questions]
    longest = max(lengths, default=0)
    return problems + limits.training_problems(cfg, model.spec, model.chat, longest)


def changed_data(
    cfg: Config,
    directory: RunDirectory,
    train: sources.Loaded | None,
    heldout: Sequence[sources.Loaded],
) -> list[str]:
    """A line for each data file that is not what it was when the run began, and one if not all
    processes read the same.
    """
    problems = directory.changed_questions(cfg, train, *heldout)
    own = run_directory.question_digests(cfg, train, *heldout)
    if not distributed.all_processes(own == distributed.broadcast_from_main(lambda: own)):
        problems.append(
            "config.data: not all processes read the same questions; copy the files to every host,"
            " or give a path that all share"
        )
    return problems


def checked_model(
    problems: list[str], cfg: Config, reporter: Reporter, directory: RunDirectory
) -> Model | None:
    """The model, if it is the one that the run began with and the same on all processes; else None,
    or lines in `problems`.
    """
    revision = directory.revision(cfg.model.path)
    model = collect(problems, lambda: open_model(cfg, reporter, directory.date, revision))
    digests = model.digests if model else {}
    if not distributed.all_processes(digests == distributed.broadcast_from_main(lambda: digests)):
        problems.append(
            f"config.model.path={cfg.model.path}: not all processes read the same files; copy them"
            " to every host"
        )
    if model:
        problems += directory.changed_model(model.directory, digests)
    return model


def require(
    problems: Sequence[str], model: Model | None, train: sources.Loaded | None
) -> tuple[Model, sources.Loaded]:
    """The model and the training data, where no process has a problem.

    Raises:
        ConfigError: with the lines of `problems`; if one process has any, none starts.
    """
    if not distributed.all_processes(not problems) or not model or not train:
        raise ConfigError(
            *dict.fromkeys(problems or ["another process cannot start; its own output says why"])
        )
    return model, train


def reflection_problems(cfg: Config, chat: Chat, questions: Sequence[Question] = ()) -> list[str]:
    """A line if no reflection prompt fits into its limit, and one if the longest, in its chat
    template, does not fit the sampler.
    """
    g, problems = cfg.gepa, []
    comment = "." if cfg.reward.fn else ""  # the least that a reward function of one's own may say

    def least(question: Question) -> int:
        return reflection.least_tokens(
            question.text, question.answer, g, chat.count_tokens, comment
        )

    # the first mostly fits, and no other is counted
    sizes = map(least, sorted(questions, key=lambda q: len(q.text)))
    if questions and not any(size <= g.reflect_prompt_tokens for size in sizes):
        problems.append(
            f"config.gepa.reflect_prompt_tokens={g.reflect_prompt_tokens} is less than any"
            f" reflection prompt takes, {min(map(least, questions))} tokens with one example and an"
            " empty response: every proposal would be rejected"
        )
    around, longest = len(chat.render_text("")), config.max_prompt_tokens(cfg)
    if config.model_reflects(cfg) and g.reflect_prompt_tokens + around > longest:
        problems.append(
            f"config.gepa.reflect_prompt_tokens={g.reflect_prompt_tokens} and {around} tokens of"
            " chat template and system prompt around them must fit into the last of"
            f" config.rollout.prompt_buckets={cfg.rollout.prompt_buckets}"
        )
    return problems


def load_seeds(cfg: Config) -> tuple[Seed, ...]:
    """The templates of config.gepa.seed_templates."""
    return seed_templates.read(cfg.gepa.seed_templates) if cfg.gepa.enabled else ()


def seed_problems(
    cfg: Config, chat: Chat, seeds: Sequence[Seed], train: sources.Loaded | None
) -> list[str]:
    """A line for each seed template that no prompt phase could begin with, and one if the budget
    pays for nothing besides them.
    """
    g, problems, questions = cfg.gepa, [], train.questions if train else ()
    longest = max(questions if seeds else (), key=lambda q: len(chat.render(q)), default=None)
    for where, text in seeds:
        problems += template_problems(cfg, chat, where, text, longest, "the longest question")
    least = gepa_rules.cheapest_phase(g, len(seeds)) if g.budget == "calls" and g.charge_all else 0
    if seeds and 0 < g.max_metric_calls < least:
        problems.append(
            f"config.gepa.max_metric_calls={g.max_metric_calls} pays for no proposal even in the"
            f" smallest prompt phase with {len(seeds)} seed templates: that takes {least} rollouts"
        )
    return problems


def template_problems(
    cfg: Config, chat: Chat, where: str, text: str, question: Question | None, of: str
) -> list[str]:
    """The lines on a template: it is too long, alone or with a question, or spells a special token.

    Args:
        cfg: the limits.
        chat: renders prompts.
        where: the place of the template, which begins each line.
        text: the template.
        question: the question to ask under it; None: there is none.
        of: this question, in words.
    """
    g, limit, problems = cfg.gepa, config.max_templated_prompt_tokens(cfg), []
    template = chat.count_tokens(text)
    prompt = len(chat.render(question, text)) if question else 0
    if template > g.max_template_tokens:
        problems.append(
            f"{where}: a template of {template:,} tokens;"
            f" config.gepa.max_template_tokens={g.max_template_tokens}"
        )
    elif prompt > limit:
        problems.append(
            f"{where}: a template of {template:,} tokens, which makes a prompt of {prompt:,} of"
            f" {of}; {limit:,} fit"
            f" (config.rollout.prompt_buckets={cfg.rollout.prompt_buckets},"
            f" config.data.max_prompt_tokens={cfg.data.max_prompt_tokens},"
            f" config.gepa.max_template_tokens={g.max_template_tokens})"
        )
    if chat.spells_special(text):
        problems.append(f"{where}: a template that spells a special token of the tokenizer")
    return problems


def hint_problems(cfg: Config, chat: Chat, train: sources.Loaded | None) -> list[str]:
    """A line for each hint that its question cannot be asked under, and one if there is none."""
    if not (train and config.has_hints(cfg)):
        return []
    hinted = [(n, q) for n, q in zip(train.lines, train.questions, strict=True) if q.hint]
    problems = [
        line
        for number, question in hinted
        for line in template_problems(
            cfg, chat, f"{train.path}:{number}", question.hint, question, "its question"
        )
    ]
    if not hinted:
        problems.append(
            f"{train.path}: all hints are blank (config.data.hint_field={cfg.data.hint_field})"
        )
    return shortened(problems, sources.MAX_PROBLEMS_SHOWN, f"{train.path}: ", "unfit hints")


def seed_notices(cfg: Config, chat: Chat, seeds: Sequence[Seed]) -> list[str]:
    """A line with the number of seed templates, and one if replies are too short to rewrite the
    longest.
    """
    if not seeds:
        return []
    longest = max(chat.count_tokens(seed.text) for seed in seeds)
    lines = [
        f"{cfg.gepa.seed_templates}: seed templates: {len(seeds)}, of up to {longest:,} tokens"
    ]
    if longest > cfg.gepa.reflect_new_tokens:
        lines.append(
            f"unusual: config.gepa.reflect_new_tokens={cfg.gepa.reflect_new_tokens} is less than"
            f" the longest seed template, {longest:,} tokens: no reply can hold one like it"
        )
    return lines


def key_problems(cfg: config.ApiConfig) -> list[str]:
    """A line for each of the endpoint's keys that is not in the environment."""
    problems: list[str] = []
    collect(problems, lambda: api.read_keys(cfg.key_env))
    return problems


def reward_problems(cfg: config.RewardConfig) -> list[str]:
    """A line if config.reward.fn is not there to be called."""
    with Scorer(dataclasses.replace(cfg, workers=1)) as scorer:
        return scorer.problems()


def space_problems(cfg: Config, directory: RunDirectory, model: Model, num_steps: int) -> list[str]:
    """A line if the disk has no room for the run's checkpoints: params and both moments of what
    is trained.
    """
    trained = jax.tree.leaves(
        lora.split(model.spec, weights(model.spec))[0], is_leaf=lambda w: isinstance(w, Weight)
    )
    moments = jnp.dtype(cfg.optim.mu_dtype).itemsize + 4
    state_bytes = sum(
        math.prod(w.shape) * (jnp.dtype(w.dtype(cfg.model.param_dtype)).itemsize + moments)
        for w in trained
    )
    return disk_space.problems(
        directory.path, cfg.checkpoint, state_bytes, num_steps, directory.restart
    )
