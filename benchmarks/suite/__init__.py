"""What asv tracks: every call beside lean NumPy's, as seconds and as ratios that hold across machines.

asv imports this folder alone, so that the scripts beside it need not work with every commit. What it shares with them
is found behind everything that is installed: the package under test is never that of the checkout.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
