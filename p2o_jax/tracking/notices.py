"""What a run's metrics say that is easily overlooked: lines for the terminal, each once a start."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MASKED = 0.05  # of the tokens of right templated responses
ENDED, NEVER_ENDS = 0.9, 0.97  # shares of truncated responses: then, and now
MOST = 0.8  # share of proposals rejected for want of a fence


class Notices:
    """Notices about the metrics of steps."""

    def __init__(self) -> None:
        self._shown: set[str] = set()
        self._least_truncated = 1.0

    def of_step(self, values: Mapping[str, float]) -> list[str]:
        """The lines after a step with these metrics."""
        masked = values.get("distill/frac_right_masked", 0.0)
        truncated = values["rollout/frac_truncated"]
        self._least_truncated = min(self._least_truncated, truncated)
        lines: dict[str, Any] = {
            "masked": masked > MAX_MASKED
            and f"!!! config.distill leaves {masked:.0%} of the tokens of right templated responses"
            " out of the loss, most likely what the template teaches:"
            " config.distill.eps_low=1 keeps them",
            "truncated": truncated >= NEVER_ENDS
            and self._least_truncated <= ENDED
            and f"!!! responses no longer end: {truncated:.0%} are cut at"
            f" config.rollout.max_new_tokens, {self._least_truncated:.0%} at best. Is there a"
            " reward for long ones? (samples.jsonl, config.loss.overlong)",
        }
        new = {name: line for name, line in lines.items() if line and name not in self._shown}
        self._shown.update(new)
        return list(new.values())


def of_search(outcomes: Sequence[str]) -> list[str]:
    """The lines after a prompt phase whose proposals had these outcomes (gepa.search)."""
    without = Counter(outcomes)["no_fence"]
    if not outcomes or without < MOST * len(outcomes):
        return []
    return [
        f"!!! {without} of the reflector's {len(outcomes)} replies have no template in a closed"
        " fence: it does not follow the reflection prompt. A larger one"
        " (config.gepa.reflector=api), longer replies (config.gepa.reflect_new_tokens) or"
        " config.gepa.seed_templates may help"
    ]
