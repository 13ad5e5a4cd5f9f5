"""The page at ``/docs``: the route, its schema and a form to try it, in one file.

FastAPI's own page loads its code from a content delivery network, so it stays empty on a train, behind a
firewall, or wherever a notebook's kernel has a network and its user has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["docs_page"]


def docs_page(title: str, example: Mapping[str, Any] | None = None) -> str:
    """Return the page as HTML; ``example`` fills the form (``{"json": ..., "params": {...}}``)."""
    return _template().render(title=title, example=dict(example or {}))


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("airserve_nb"), autoescape=True)
    return environment.get_template("docs.html")
