"""The engine stand-in, as a module to run."""

import sys

from tests.unit.children import main

if __name__ == "__main__":
    sys.exit(main("engine"))
