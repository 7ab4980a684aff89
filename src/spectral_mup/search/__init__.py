"""Which runs a sweep wants next: a function of its config and results, so that whoever computes it gets the same ones."""
