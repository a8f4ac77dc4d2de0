"""Train a TRM hybrid: a frozen language model reads the task as text, a recursive decoder draws the grid.

python pretrain_trm_hybrid.py num_train_problems=10 num_val_problems=5 key=value ... +project_name=... +run_name=...
torchrun --nproc-per-node 8 pretrain_trm_hybrid.py ...
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from reports.observers import RUN_OBSERVERS
from training.loop import main

if __name__ == "__main__":
    main("cfg_pretrain_trm_hybrid", observers=RUN_OBSERVERS)
