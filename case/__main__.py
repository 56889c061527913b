"""``python -m case``: the command line, for shells that read ``case`` as a word of their own."""

import sys

from case.cli import main

sys.exit(main())
