"""Import this after all else that stays: what was imported is kept out of the garbage collector's rounds.

A round over all modules takes half a second, and in a process that was forked it copies every page that it looks at.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
