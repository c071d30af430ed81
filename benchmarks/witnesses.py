r"""The experimental defence ``witnesses`` as a plugin, until it has been measured and takes the place of the default.

antibackdoor train DATA --out RUN --plugin benchmarks/witnesses.py --defence witnesses
"""

from antibackdoor.defences.witnesses import Witnesses

DEFENCES = {"witnesses": Witnesses}
