"""How a panel stands in a notebook: a summary that is kept, and the live view that takes its place.

They are two outputs. A front end that has a view's output but not its model, such as JupyterLab with a saved notebook
and no kernel, would show nothing but an error in a single one. The summary has a display id, so that it can be
renewed: what is saved is never much older than what was seen.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display

from airserve_nb.display import HOW_TO_GET_A_PANEL
from airserve_nb.panel.summary import summary_html

__all__ = ["Displays", "bundle", "plain_bundle"]

VIEW = "application/vnd.jupyter.widget-view+json"
# Who shows one panel more often than that has forgotten the first.
MOST_SHOWN = 8


class Displays:
    """Where a panel is shown.

    Parameters
    ----------
    panel
        The panel.
    """

    def __init__(self, panel: Any) -> None:
        self._panel = panel
        self._ids: deque[str] = deque(maxlen=MOST_SHOWN)

    def show(self) -> None:
        """Show the panel in the output of the cell that runs."""
        number = f"airserve-{secrets.token_hex(8)}"
        service = self._panel.service
        display(plain_bundle(service), raw=True, display_id=number)
        view = {"version_major": 2, "version_minor": 0, "model_id": self._panel.model_id}
        # A front end that has no widgets shows the text.
        display({VIEW: view, "text/plain": HOW_TO_GET_A_PANEL}, raw=True, display_id=f"{number}-live")
        self._ids.append(number)

    def renew(self) -> None:
        """Renew the summaries; where there is no notebook any more, nothing happens."""
        if self._ids and get_ipython() is not None:
            summary = plain_bundle(self._panel.service)
            for number in self._ids:
                display(summary, raw=True, display_id=number, update=True)

    def freeze(self) -> None:
        """Leave the summaries alone."""
        if not self._ids:
            display(plain_bundle(self._panel.service), raw=True)
            return
        self.renew()
        for number in self._ids:
            display({"text/html": ""}, raw=True, display_id=f"{number}-live", update=True)
        self._ids.clear()


def bundle(service: Any, panel: Any) -> dict[str, Any]:
    """Return view, summary and text in one: for whoever can choose."""
    view = {"version_major": 2, "version_minor": 0, "model_id": panel.model_id}
    return {VIEW: view, **plain_bundle(service)}


def plain_bundle(service: Any) -> dict[str, Any]:
    """Return summary and text."""
    return {"text/html": summary_html(service), "text/plain": repr(service)}
