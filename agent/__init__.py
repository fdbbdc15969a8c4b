"""The Steelyard agent, which keeps the kernel's tables up to date."""

import os

# NumPy's OpenBLAS starts a thread for each further core when it is imported, which spins before it
# sleeps: a tenth of a second of CPU in each process, for matrices of a few rows.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
