"""Print how the readers take what is no longer valid: ``python tests/fuzz/figures.py SECONDS [READER...]``.

What fails is written to ``--keep DIR``, from where it can be put into ``corpus/``. Exit code 1 where anything failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from end_to_end import FAST, invoke, write_npz  # noqa: E402 - the folders must be known first
from fuzzing import fuzz  # noqa: E402
from readers import readers  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("names", nargs="*", help="readers; all by default")
    parser.add_argument("--start", type=int, default=1, help="seed")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    print("| reader | files | read | refused in one line | else |")
    print("|---|---|---|---|---|")
    broken = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = invoke("train", write_npz(folder / "d.npz", 8), "--out", folder / "done", *FAST, "--quiet")
        if done.code:
            print(done.err, file=sys.stderr)
            return 1
        known = readers(folder, folder / "done")
        for reader in given.names or known:
            tried = fuzz(known[reader], seconds=given.seconds, start=given.start)
            print(
                f"| {reader} | {tried.count:,} | {tried.read:,} | {tried.refused:,} | {len(tried.faults)} |", flush=True
            )
            for number, (fault, content) in enumerate(zip(tried.faults, tried.failing, strict=True)):
                print(f"{reader}: {fault}", file=sys.stderr, flush=True)
                if given.keep:
                    (given.keep / reader).mkdir(parents=True, exist_ok=True)
                    (given.keep / reader / f"{given.start}-{number}").write_bytes(content)
            broken |= bool(tried.faults)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
