"""`python -m ibtrain` is the same program as `ibtrain`."""

import sys

from ibtrain.cli import main

sys.exit(main())
