"""Measure minisam against PyTorch, ONNX Runtime and OpenVINO on this machine.

    python -m tests.bench                       # ViT-B, everything
    python -m tests.bench --model vit_h --only encoder memory
    python -m tests.bench --engines minisam --only stages

Every engine runs Meta's model with the same weights (made up by tests/recipe.py; trained ones may
differ a little, where very small or very large numbers take a way of their own) on the same inputs,
in float32, on the same number of threads, in a process of its own. They take turns at every
measurement, so that a slow minute of the machine hits all. An engine that is not installed is left
out, and the reason is printed. The extra `reference` installs them all; together they hold about
10 GB of memory.
"""
