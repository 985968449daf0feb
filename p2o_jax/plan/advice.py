"""Whether a config fits into memory, and otherwise by how much it misses and what would help."""

from collections.abc import Sequence

from p2o_jax.config import Config
from p2o_jax.plan.chips import GIB
from p2o_jax.plan.memory import Load


def misses(loads: Sequence[Load], limit_gib: float) -> list[Load]:
    """The programs that do not fit into memory, largest first."""
    over = [load for load in loads if load.total > limit_gib * GIB]
    return sorted(over, key=lambda load: -load.total)


def advice(load: Load, cfg: Config, shards: int, limit_gib: float) -> str:
    """A line with the program that does not fit, the missing memory, and settings to change."""
    missing = load.total - limit_gib * GIB
    settings = _settings(load, cfg, shards, missing)
    return (
        f"{load.program} needs {load.total / GIB:.2f} of {limit_gib} GiB, {missing / GIB:.2f} too"
        f" much: {'; or '.join(settings)}"
    )


def _settings(load: Load, cfg: Config, shards: int, missing: float) -> list[str]:
    r, o = cfg.rollout, cfg.optim
    settings = []
    if load.program.startswith("decode") and load.caches > missing and r.slots > shards:
        share = 1 - missing / load.caches
        settings.append(
            f"config.rollout.slots={max(int(r.slots * share) // shards, 1) * shards} (now"
            f" {r.slots}), prompt_cache_tokens in proportion"
        )
    if load.caches / 2 > missing and r.cache_dtype == "auto":
        settings.append("config.rollout.cache_dtype=int8 (now auto)")
    if load.program.startswith("prefill") and r.prefill_tokens > 1:
        settings.append(
            f"config.rollout.prefill_tokens={r.prefill_tokens // 2} (now {r.prefill_tokens}), or a"
            " smaller last prompt bucket"
        )
    if load.program.startswith(("update", "score")):
        if o.micro_rows > shards:
            settings.append(
                f"config.optim.micro_rows={max(o.micro_rows // 2 // shards, 1) * shards} (now"
                f" {o.micro_rows})"
            )
        if cfg.model.remat != "full":
            settings.append(f"config.model.remat=full (now {cfg.model.remat})")
        if cfg.model.logit_chunk > 256:
            settings.append(
                f"config.model.logit_chunk={cfg.model.logit_chunk // 2} (now"
                f" {cfg.model.logit_chunk})"
            )
    if load.optimizer > missing and o.mu_dtype == "float32":
        settings.append("config.optim.mu_dtype=bfloat16")
    if load.reference > missing and cfg.loss.kl != "off":
        settings.append(
            "config.loss.kl=off, or config.lora.rank, where the frozen rest is the reference"
        )
    elif load.reference > missing:
        settings.append(
            "config.gepa.reflector=policy or api (now reference: a frozen second model)"
        )
    if load.weights / 2 > missing:
        settings.append(
            f"config.mesh.tensor={2 * max(cfg.mesh.tensor, 1)}, which splits weights for decoding"
            f" (now {cfg.mesh.tensor})"
        )
    return [
        *settings,
        "more of config.mesh.fsdp or config.mesh.tensor, that is more chips or another layout",
    ]
