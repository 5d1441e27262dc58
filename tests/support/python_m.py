"""`python -m handler` with a sleep as its work, whatever `handler/work.py` has."""

import runpy

from handler import work
from tests.support.sleep import Sleep

if __name__ == "__main__":
    vars(work)["work"] = Sleep()
    runpy.run_module("handler", run_name="__main__", alter_sys=True)
