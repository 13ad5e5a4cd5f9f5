"""The live panel of a service: one widget, drawn by hand in the browser.

``panel.py`` is the widget, ``feed.py`` its one thread that watches the service, ``picture.py`` what is shown,
``viewers.py`` who looks, ``commands.py`` what may be asked from the browser, ``summary.py`` what the saved
notebook keeps. ``panel.js`` and ``panel.css`` are all that the browser needs.
"""

__all__: list[str] = []
