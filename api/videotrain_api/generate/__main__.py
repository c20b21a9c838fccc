"""`python -m videotrain_api.generate {write,check,print}`."""

import sys

from videotrain_api.generate.files import main

sys.exit(main())
