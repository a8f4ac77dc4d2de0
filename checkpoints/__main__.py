"""`python -m checkpoints inspect PATH`, `python -m checkpoints export PATH --to trm`."""

from checkpoints.cli import main

if __name__ == "__main__":
    main()
