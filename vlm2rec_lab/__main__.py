"""`python -m vlm2rec_lab` is the command `vlm2rec`."""

import sys

from vlm2rec_lab.cli import main

if __name__ == '__main__':
    sys.exit(main())
