"""Conversion of a phase's result to the format of the `gepa` package, for `GEPAResult.from_dict`
and its candidate tree.
"""

from typing import Any

from p2o_jax.gepa import pareto
from p2o_jax.types import SearchResult

COMPONENT = "instruction"  # the only component of a candidate that evolves


def to_gepa_result(result: SearchResult) -> dict[str, Any]:
    """Returns a JSON dict that `gepa.core.result.GEPAResult.from_dict` reads (its schema version
    2).
    """
    accepted_at = {
        event["candidate"]: event["rollouts"]
        for event in result.events
        if event["outcome"] == "accepted"
    }
    means = [sum(row) / max(len(row), 1) for row in result.score_ZN]
    return {
        "candidates": [{COMPONENT: template} for template in result.templates],
        "parents": [[parent] for parent in result.parents],
        "val_aggregate_scores": means,
        "val_subscores": [dict(zip(result.dev_ids, row, strict=True)) for row in result.score_ZN],
        "per_val_instance_best_candidates": {
            name: list(front)
            for name, front in zip(result.dev_ids, pareto.fronts(result.score_ZN), strict=True)
        },
        "discovery_eval_counts": [accepted_at.get(z, 0) for z in range(len(result.templates))],
        "total_metric_calls": int(result.stats.get("rollouts_generated", 0)),
        "num_full_val_evals": len(result.templates),
        "_str_candidate_key": COMPONENT,
        "best_idx": means.index(max(means)),
        "validation_schema_version": 2,
    }
