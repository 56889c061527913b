"""How the method runs: resident data and sampling, the training loop, checkpoints, evaluation."""
