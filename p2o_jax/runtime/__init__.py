"""Processes and what surrounds them: distributed start, liveness, preemption, console, files."""
