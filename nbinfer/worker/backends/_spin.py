"""How long llama.cpp's threads wait spinning. Import it before the library.

They meet at a barrier about a thousand times for each token, and spin there. When anything else
wants the cores, a browser that shows the answer for one, they spin away whole time slices: on
two cores beside one busy process three rows and three times eight did not end in a minute with
200,000 turns (the runtime's own bound is more), and made 25 and 88 tokens a second with 2,000,
46 and 107 with 100. On idle cores 2,000 is as fast as 200,000, and 100 a third of it. The OpenMP
runtime reads it when it is loaded.
"""

from __future__ import annotations

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
