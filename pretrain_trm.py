"""Train a TRM: puzzle id → learned embedding → recursive decoder. The published baseline, and a source of decoders.

python pretrain_trm.py --config-name cfg_pretrain_trm_arc_agi_1 key=value ... +project_name=... +run_name=...
torchrun --nproc-per-node 8 pretrain_trm.py ...
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from reports.observers import RUN_OBSERVERS
from training.loop import main

if __name__ == "__main__":
    main("cfg_pretrain_trm_arc_agi_1", observers=RUN_OBSERVERS)
