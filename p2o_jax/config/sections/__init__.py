"""The sections of the config: one frozen dataclass each, a file per part of a run."""
