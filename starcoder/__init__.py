"""Run, serve, fine-tune and measure code language models of the StarCoder family."""
