"""Train an ETRM: demonstrations → encoder → context → recursive decoder.

python pretrain_etrm.py --config-name cfg_pretrain_etrm_arc_agi_1 key=value ... +project_name=... +run_name=...
torchrun --nproc-per-node 8 pretrain_etrm.py ...
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from reports.observers import RUN_OBSERVERS
from training.loop import main

if __name__ == "__main__":
    main("cfg_pretrain_etrm_arc_agi_1", observers=RUN_OBSERVERS)
