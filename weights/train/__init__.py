"""Training of the nano weights. Needs the ``train`` extra (PyTorch); nothing else here does."""
