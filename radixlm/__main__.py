"""`python -m radixlm` is the command `radixlm`."""

import sys

from radixlm.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
