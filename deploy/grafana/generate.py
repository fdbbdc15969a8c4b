"""Makes the dashboards from what ``boards`` says."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.boards import DASHBOARDS

FOLDER = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """Each file's name and text."""
    return {
        f"{dashboard.name}.json": json.dumps(dashboard.document(), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }


def files() -> dict[Path, str | None]:
    """Return the text of each dashboard; None for a file that is no dashboard any more."""
    made: dict[Path, str | None] = dict.fromkeys(FOLDER.glob("*.json"))
    return made | {FOLDER / name: text for name, text in documents().items()}
