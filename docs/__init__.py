"""The documentation, and what makes parts of it: `python -m docs.generate`, `python -m
docs.screenshots RUN...`.
"""
