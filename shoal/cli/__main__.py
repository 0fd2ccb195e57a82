"""`python -m shoal.cli`."""

import sys

from shoal.cli.command import main

sys.exit(main())
