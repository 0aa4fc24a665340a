"""Evaluation: problems, completions, the sandbox that runs them, and scores."""
