"""`python -m dipengine` is `dipengine`."""

import sys

from dipengine.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
