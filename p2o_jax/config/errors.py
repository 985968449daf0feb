"""The error for everything that is wrong with a user's input."""


class ConfigError(ValueError):
    """One or more problems with the user's input; `problems` has a line for each."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems
