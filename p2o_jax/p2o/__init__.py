"""What is new in the method: hard questions, their templates, and what became of both."""
