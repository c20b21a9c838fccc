"""`python -m videotrain`."""

import sys

from videotrain.cli import main

sys.exit(main())
