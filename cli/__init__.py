"""The `deploy-image` command. It uses the package as any program would: public names only."""

import os

# numpy's linear algebra, of which nothing is used here, starts a thread for each processor when it is loaded,
# and lets them spin: a tenth of a second of processor time, a third of all that starting costs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
