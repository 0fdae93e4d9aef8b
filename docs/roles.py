"""Hook of MkDocs: removes roles such as :class: before code, which Sphinx would read and Markdown shows as text."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:  # noqa: ANN401
    """Return the HTML of a page without roles."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)
