"""Developer tool: read the layouts of new components, and remove those that no component has any more.

python -m lora_drift.harness.minihub.read_layouts    # in an environment with transformers 4.57 (the pinned one)
"""

import json
import sys

from lora_drift.harness.minihub.layout import LAYOUTS, config_key, folded, read_from_class
from lora_drift.harness.minihub.repos import REPOS


def main() -> None:
    LAYOUTS.mkdir(exist_ok=True)
    wanted = {config_key(w): w for repo in REPOS.values() for w in repo.weights}
    for stale in set(LAYOUTS.glob("*.json")) - {LAYOUTS / f"{key}.json" for key in wanted}:
        stale.unlink()
        print("removed", stale.name, file=sys.stderr)
    for key, weights in wanted.items():
        path = LAYOUTS / f"{key}.json"
        if not path.is_file():
            path.write_text(json.dumps(folded(read_from_class(weights)), indent=0) + "\n")
            print("wrote", path.name, file=sys.stderr)


if __name__ == "__main__":
    main()
