"""`python -m openavs` is `openavs`."""

from __future__ import annotations

import sys

from openavs.cli import main

sys.exit(main())
