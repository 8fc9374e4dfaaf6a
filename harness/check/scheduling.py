"""Under `pytest -n N`, all mini cases of a model go to one worker, which then loads the model once.

(xdist's own `--dist loadgroup` marks groups in node ids, which pytest 9.2 no longer lets it do.)
"""

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScheduling, LoadScopeScheduling


class ModelScheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        path, _, _name = nodeid.partition("::")
        folder = Path(path).parent
        return str(folder) if path.endswith(".yaml") and folder.name != "full" else nodeid

    def remove_node(self, node: Any) -> str | None:
        """A case that ended its worker is over; xdist would try it again, until too many workers have ended."""
        units = self.assigned_work[node].values()
        lost = next(((unit, item) for unit in units for item, done in unit.items() if not done), None)
        if lost is None:
            return super().remove_node(node)
        unit, item = lost
        unit[item] = True
        super().remove_node(node)
        return item


def by_model(config: pytest.Config) -> None:
    """Put a ModelScheduling in the place of xdist's default scheduler, which has given out nothing yet.

    xdist asks for a scheduler before anybody knows whether there are cases (`pytest_xdist_make_scheduler`), so a plugin
    that answers there changes every run of every project.
    """
    session: Any = config.pluginmanager.getplugin("dsession")
    if type(session.sched) is not LoadScheduling or session.sched.node2collection:
        return  # another one was asked for (--dist), or it has begun
    scheduler = ModelScheduling(config, session.log)
    for node in session.sched.nodes:
        scheduler.add_node(node)
    session.sched = scheduler
