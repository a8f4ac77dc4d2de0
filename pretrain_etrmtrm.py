"""Train an ETRMTRM: the encoder's latent evolves with the decoder's ACT steps.

    python pretrain_etrmtrm.py --config-name cfg_pretrain_etrmtrm_arc_agi_1 \\
        arch.recurrent_encoder_type=recurrent_standard key=value ... +project_name=... +run_name=...
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from reports.observers import RUN_OBSERVERS
from training.loop import main

if __name__ == "__main__":
    main("cfg_pretrain_etrmtrm_arc_agi_1", observers=RUN_OBSERVERS)
