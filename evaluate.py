"""Evaluate a checkpoint: python evaluate.py --checkpoint RUN [--split train|test] [--shuffle] ...

`--shuffle` is the control of every system: each query is asked with what belongs to another puzzle (TRM: the puzzle's
id, the others: the demonstrations). A model that reads them does far worse then.
"""

from inference.evaluate_cli import main

if __name__ == "__main__":
    main()
