"""One probe: ``python -m deploykit.doctor KEY [ARGUMENT]`` prints its answer as JSON."""

from __future__ import annotations

import json
import sys

from deploykit.doctor.examination import ANSWER
from deploykit.doctor.probes import Answer, failure, run_probe


def main(key: str, argument: str) -> None:
    """Run a probe and print its answer on one line."""
    try:
        answer = run_probe(key, argument)
    except Exception as error:  # whatever a broken installation raises is the finding
        answer = failure(error)
    print(f"\n{ANSWER}{json.dumps(Answer._asdict(answer))}")


main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
