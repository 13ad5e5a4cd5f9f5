"""Links that a browser can follow, also where the kernel runs behind a proxy.

A service listens on the loopback address of the kernel's machine, and ``service.url`` says so: code in the kernel uses
it. A browser that shows the notebook is often on another machine. Where JupyterHub runs the kernel, its proxy
(jupyter-server-proxy) forwards ``/proxy/PORT/PATH`` below the user's own prefix, so the links that are shown go there.
Elsewhere, the environment variable ``AIRSERVE_LINK_TEMPLATE`` says what they look like::

    AIRSERVE_LINK_TEMPLATE=https://hub.example.org{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}{path}

It may name ``{scheme}``, ``{host}``, ``{port}`` and ``{path}`` (with its leading slash) of the service's own URL, and
any environment variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["shown_link"]

TEMPLATE_VARIABLE = "AIRSERVE_LINK_TEMPLATE"
# Set by JupyterHub in every user's server, such as /user/ada/.
HUB_VARIABLE = "JUPYTERHUB_SERVICE_PREFIX"
HUB_TEMPLATE = f"{{{HUB_VARIABLE}}}proxy/{{port}}{{path}}"

_FIELD = re.compile(r"\{(\w+)\}")


def shown_link(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the address under which a browser reaches ``url``.

    Parameters
    ----------
    url
        A service's own URL.
    environment
        The environment variables.

    Returns
    -------
    str
        An address, or a path on the notebook's own server; ``url`` itself where nothing says otherwise, or where
        the template can't be filled in or would not make a link.
    """
    template = environment.get(TEMPLATE_VARIABLE) or (HUB_TEMPLATE if environment.get(HUB_VARIABLE) else "")
    parts = urlsplit(url)
    fields = {
        **environment,
        "scheme": parts.scheme,
        "host": parts.hostname or "",
        "port": str(parts.port or (443 if parts.scheme == "https" else 80)),
        "path": parts.path or "/",
    }
    if not template or any(name not in fields for name in _FIELD.findall(template)):
        return url
    link = _FIELD.sub(lambda match: fields[match[1]], template)
    # An operator's slip must not make a link that runs code.
    is_link = link.startswith(("http://", "https://")) or (link.startswith("/") and not link.startswith("//"))
    return link if is_link else url
