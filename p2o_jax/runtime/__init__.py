"""Services for processes: distributed start, liveness, preemption, console output and files."""
