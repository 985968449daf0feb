"""The prompt phase."""

from dataclasses import dataclass
from typing import Literal

from p2o_jax.config.ranges import INT32_MAX, SECONDS, TEMPERATURE_OR_GREEDY, TOKENS
from p2o_jax.config.setting import setting


@dataclass(frozen=True)
class GepaConfig:
    """GEPA: prompt templates evolved on hard questions, between epochs."""

    enabled: bool = setting(True, "Evolve prompt templates. false: plain GRPO.")
    schedule: Literal["every_epoch", "adaptive", "first"] | None = setting(
        None,
        "When. adaptive ▲: every epoch, but only as long as the next iteration is expected to pay"
        " for its tokens, and pairs of template and question that training has tried are not"
        " evaluated again (p2o_jax/p2o/value.py). first: once, on all questions, before training;"
        " its templates are kept.",
    )
    min_hard: int = setting(
        100, "Hard questions needed for a prompt phase; with fewer it is skipped.", ge=1
    )
    dev_size: float = setting(
        300.0,
        "Hard questions held out as the dev set: a count, or a fraction up to 0.5.",
        gt=0,
        le=INT32_MAX,
    )
    parents: int = setting(16, "Parents per iteration, with one proposal each.", ge=1)
    minibatch: int = setting(3, "Questions that each proposal reflects on.", ge=1)
    max_minibatches: int = setting(
        1,
        "Minibatches on which a child is compared with its parent at most: another one while they"
        " tie.",
        ge=1,
    )
    budget: Literal[
        "light",
        "medium",
        "heavy",
        "heavy_2",
        "heavy_3",
        "heavy_4",
        "heavy_16",
        "calls",
        "full_evals",
    ] = setting(
        "heavy_4",
        "Rollouts of a phase. light to heavy_16: GEPA's auto levels for 6 to 288 candidates; calls:"
        " max_metric_calls; full_evals: max_full_evals.",
    )
    max_metric_calls: int = setting(0, "For budget=calls: rollouts of a phase.", ge=0)
    max_full_evals: int = setting(
        0, "For budget=full_evals: passes over train and dev questions of a phase.", ge=0
    )
    reflector: Literal["policy", "reference", "api", "hint"] = setting(
        "reference",
        "Where templates come from. A model proposes them: the current policy, the initial one, or"
        " the endpoint of config.api. hint: nothing evolves, and the template of a hard question is"
        " its hint in the data (data.hint_field), as in SAGE (arXiv 2602.03143) and Scaf-GRPO.",
    )
    prompt_style: Literal["paper", "compact"] = setting(
        "paper", "Reflection prompt. compact: a few words, for very small models."
    )
    reflect_temperature: float = setting(
        0.6, "Sampling temperature of reflection; 0 is greedy.", TEMPERATURE_OR_GREEDY
    )
    reflect_prompt_tokens: int = setting(
        32768 - 2048 - 500,
        "Longest reflection prompt, in tokens; examples are cut to fit.",
        ge=1,
    )
    reflect_new_tokens: int = setting(
        2048, "Longest reply of the reflector, in tokens, its thoughts included.", ge=1
    )
    rollouts_per_eval: int = setting(
        1, "Rollouts per question in the evaluation of a candidate.", ge=1
    )
    acceptance: Literal["strict", "margin"] = setting(
        "strict",
        "When a proposal is accepted: it beats its parent on the minibatch (strict), or does so by"
        " acceptance_margin (margin).",
    )
    acceptance_margin: float = setting(
        1.0,
        "For acceptance=margin: lead over the parent, in summed rewards of the minibatch.",
        ge=0,
        le=1e6,
    )
    show_reference_answer: bool = setting(
        True, "Show the reference answers of its examples to the reflector."
    )
    max_template_tokens: int = setting(1024, "Longest template, in tokens.", ge=1)
    temperature: float | None = setting(
        None,
        "Sampling temperature in the evaluation of candidates; 0 is greedy.",
        TEMPERATURE_OR_GREEDY,
    )
    count_unsolved_fronts: bool | None = setting(
        None, "Count dev questions that no candidate solves when parents are drawn."
    )
    skip_perfect: bool | None = setting(
        None, "Skip parents with full reward on their minibatch, which no child could beat."
    )
    fill_width: bool | None = setting(
        None,
        "Draw parents again, with other minibatches, until there are `parents` proposals.",
    )
    max_iterations: int | None = setting(None, "Iterations of a phase. 0: no limit.", ge=0)
    patience: int | None = setting(
        None, "Iterations without an accepted proposal after which a phase ends. 0: no limit.", ge=0
    )
    charge_all: bool | None = setting(
        None, "Count every rollout in the budget. false: only those that the released code counts."
    )
    filter_replies: bool | None = setting(
        None,
        "Drop the thoughts of replies and pair their fences: the first block that is new is the"
        " template. Replies without one, and those that are cut off, too long or duplicate a"
        " template, are rejected. false: everything between the first and the last fence.",
    )
    seed_templates: str = setting(
        "",
        "File of templates that every prompt phase begins with, beside the empty one: one a"
        ' paragraph, or JSONL with a line {"template": "..."} each.',
    )
    carry_over: int | None = setting(
        None,
        "Templates that a prompt phase takes over from the last one, at most: its cover, then the"
        " best others by dev score. They are evaluated on the new dev set. 0: each phase begins"
        " anew.",
        ge=0,
    )
    leak_guard: bool | None = setting(
        None, "Reject templates that contain a question or an answer of their minibatch."
    )


@dataclass(frozen=True)
class ApiConfig:
    """The OpenAI-compatible endpoint that reflects with gepa.reflector=api.

    gepa.reflect_temperature and gepa.reflect_new_tokens apply to it as well. An endpoint that
    refuses max_tokens is sent max_completion_tokens from then on; one that refuses the temperature
    is sent none. Caps are on the whole run, restarts included.
    """

    base_url: str = setting(
        "", "Base URL, e.g. https://api.example.com/v1; /chat/completions is added."
    )
    model: str = setting("", "Name of the model.")
    key_env: tuple[str, ...] = setting(
        ("OPENAI_API_KEY",),
        "Names of environment variables that hold API keys, used in turn. (): no key.",
    )
    extra_body: str = setting(
        "",
        "JSON object of additional request fields, e.g."
        ' {"chat_template_kwargs": {"enable_thinking": false}}; null leaves a field out, e.g.'
        ' {"temperature": null}.',
    )
    concurrency: int = setting(8, "Requests at a time.", ge=1, le=1024)
    timeout_s: float = setting(
        120.0, "Seconds that a request may take, from its start to the last byte.", SECONDS
    )
    retries: int = setting(4, "Further attempts after a failed request.", ge=0, le=100)
    backoff_s: float = setting(
        1.0,
        "Mean seconds before the first retry. Doubles with each further one, up to a minute, with"
        " jitter of up to a half. What the endpoint asks for by Retry-After, up to five minutes, is"
        " added.",
        ge=0,
        le=1e6,
    )
    max_tokens_total: int = setting(0, "Cap on prompt and reply tokens. 0: no cap.", TOKENS)
    max_dollars: float = setting(
        0.0, "Cap on the cost, in dollars; needs the prices. 0: no cap.", ge=0, le=1e9
    )
    dollars_per_million_prompt: float = setting(
        0.0, "Price in dollars of a million prompt tokens.", ge=0, le=1e9
    )
    dollars_per_million_reply: float = setting(
        0.0, "Price in dollars of a million reply tokens.", ge=0, le=1e9
    )
