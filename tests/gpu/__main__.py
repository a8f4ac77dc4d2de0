"""`python -m tests.gpu`, `make check-gpu`: the tests that need CUDA, where there is one; else one line."""

import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    sys.stdout.write("no CUDA device here: nothing is checked\n")
    sys.exit(0)
sys.exit(pytest.main([str(Path(__file__).parent), "-rs", "-v", "-p", "no:cacheprovider", *sys.argv[1:]]))
