"""Every page by its name, and where a running daemon serves it."""

import re

from tests.service.builders import RunningDaemon

PAGES = {
    "overview": "",
    "flags": "flags",
    "request": "flags/3",
    "review": "review",
    "reviewing": "flags/5?queue=new",
    "detectors": "detectors",
    "name": "name",
    "absent": "nowhere",
}
"""By name, the path; of a record that `tests.web.history` has filled."""


def page_url(daemon: RunningDaemon, path: str) -> str:
    """Return the address of *path* of the daemon's audit page."""
    found = re.search(r"audit page: (\S+)", "".join(daemon.log))
    assert found is not None, daemon.log
    return found[1] + path
