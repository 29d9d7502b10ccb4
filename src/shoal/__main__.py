"""`python -m shoal`: the command line, where `shoal` is not on PATH."""

import sys

from shoal.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
