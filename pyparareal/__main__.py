# SPDX-License-Identifier: BSD-3-Clause
"""``python -m pyparareal`` is ``pyparareal``."""

import sys

from pyparareal.cli import main

if __name__ == "__main__":
    sys.exit(main())
