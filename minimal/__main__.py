"""`python -m minimal`, the same as the command `minimal`."""

import sys

from minimal.cli import main

sys.exit(main())
