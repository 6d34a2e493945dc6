"""`python -m fastbackprop`: the command line."""

import sys

from fastbackprop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
