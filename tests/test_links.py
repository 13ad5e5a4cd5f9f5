"""The links that are shown lead through the proxy that the kernel is behind."""

from __future__ import annotations

from typing import Any

import pytest

from airserve_nb.display import ServiceView, service_html
from airserve_nb.links import shown_link

URL = "http://127.0.0.1:8000/adder"
HUB = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/"}


@pytest.mark.parametrize(
    ("environment", "link"),
    [
        ({}, URL),
        ({"JUPYTERHUB_SERVICE_PREFIX": ""}, URL),
        (HUB, "/user/ada/proxy/8000/adder"),
        ({"AIRSERVE_LINK_TEMPLATE": "https://hub.org/{port}{path}"}, "https://hub.org/8000/adder"),
        (
            {**HUB, "AIRSERVE_LINK_TEMPLATE": "https://hub.org{JUPYTERHUB_SERVICE_PREFIX}p/{port}{path}"},
            "https://hub.org/user/ada/p/8000/adder",
        ),
        ({"AIRSERVE_LINK_TEMPLATE": "{scheme}://{host}:{port}{path}?x={{y}}"}, URL),
        ({"AIRSERVE_LINK_TEMPLATE": "https://{NOT_SET}{path}"}, URL),
        ({"AIRSERVE_LINK_TEMPLATE": "javascript:alert({port})"}, URL),
        ({"AIRSERVE_LINK_TEMPLATE": "//elsewhere.org{path}"}, URL),
    ],
    ids=["plain", "no hub", "hub", "template", "both", "unknown field", "not set", "script", "no scheme"],
)
def test_a_link_is_what_the_browser_reaches(environment: dict[str, str], link: str) -> None:
    """JupyterHub's proxy is found by itself, a template says the rest; what makes no link is not followed."""
    assert shown_link(URL, environment) == link


def test_the_root_has_a_path() -> None:
    """A service at / and a URL without a port get theirs."""
    assert shown_link("http://127.0.0.1:8000", HUB) == "/user/ada/proxy/8000/"
    assert shown_link("https://a.org/x", {"AIRSERVE_LINK_TEMPLATE": "/{port}{path}"}) == "/443/x"


def test_the_card_links_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is clicked goes through the proxy; what is typed on the kernel's machine does not."""
    monkeypatch.setenv(*next(iter(HUB.items())))
    view = ServiceView(name="adder", url=URL, example={"array": [40]})
    html: Any = service_html(view)
    assert 'href="/user/ada/proxy/8000/adder"' in html
    assert 'href="/user/ada/proxy/8000/adder/docs"' in html
    assert f"curl {URL}" in html
    assert view.url == URL
