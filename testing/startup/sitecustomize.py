"""Python imports this file at the start of every process of the tests, whose PYTHONPATH names its folder first.

Such a process lives for seconds and spends most of them on imports, of which looking for garbage takes a tenth. What
is imported is never garbage, so the search is made rarer than Python's default of 700 new objects.
"""

import gc

gc.set_threshold(100_000, 50, 100)
