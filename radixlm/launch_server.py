"""`python -m radixlm.launch_server` is `radixlm serve` under the module name that SGLang's users know."""

import sys

from radixlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
