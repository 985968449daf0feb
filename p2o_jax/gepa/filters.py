"""Which replies of the reflecting model become templates, and why others are rejected."""

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from p2o_jax import config
from p2o_jax.gepa import replies
from p2o_jax.types import Reply

Problem = Literal["", "cut", "no_fence", "think", "too_long", "special_token", "duplicate", "empty"]


class Extracted(NamedTuple):
    """The text of a reply, and the reason why it may not become a template; empty if it may."""

    text: str
    problem: Problem


def extract(
    reply: Reply,
    cfg: config.GepaConfig,
    count_tokens: Callable[[str], int],
    taken: Collection[str] = (),
    spells_special: Callable[[str], bool] = lambda text: False,
) -> Extracted:
    """Returns the template in a reply, and the reason if it is rejected.

    A word directly after an opening fence that ends its line is a language tag. ▲ Any tag is
    removed; the released code knows only "markdown". ▲ With `filter_replies` the template is the
    first block after the thoughts that is not empty or taken, and unfinished thoughts, unclosed
    fences, long texts, duplicates, and texts that spell a special token of the tokenizer (such as
    the end of a turn) are rejected; without it the template is everything between the first and the
    last fence, or an unfenced reply as it is, and only empty texts are rejected, as in the released
    code.

    Args:
        reply: the reply.
        cfg: settings of GEPA.
        count_tokens: tokens of a text, as the reflecting model counts them.
        taken: existing templates; white space is ignored in comparisons.
        spells_special: whether a text spells a special token.
    """
    if not cfg.filter_replies:
        text, _ = replies.first_to_last(reply.text)
        return Extracted(text, "" if text else "empty")
    texts, unfinished = replies.templates(reply)
    if unfinished:
        return Extracted(reply.text.strip(), "cut" if reply.cut else unfinished)
    known = {normal(other) for other in taken}
    text = next((text for text in texts if text and normal(text) not in known), "")
    problem: Problem = ""
    if not text:
        text = next(filter(None, texts), "")
        problem = "duplicate" if text else "empty"
    elif count_tokens(text) > cfg.max_template_tokens:
        problem = "too_long"
    elif spells_special(text):
        problem = "special_token"
    return Extracted(text, problem)


def normal(text: str) -> str:
    """Returns the text with every run of white space replaced by one space."""
    return " ".join(text.split())
