"""Rewrites the Sphinx markup of our docstrings into what MkDocs understands.

``:math:`x``` and ``.. math:: x`` become mathematics; ``:func:`~a.b.c``` and its like become a link where ``a.b.c`` has
a page here, and plain code where it has none (Stable-Baselines3's names).
"""

import re
from typing import Any

import griffe

# The directive's own line and every indented line after it, with the empty lines in between.
DISPLAYED_MATH = re.compile(r"^\.\. math::(.*(?:\n+[ \t]+\S.*)*)", re.MULTILINE)
INLINE_MATH = re.compile(r":math:`([^`]+)`")
REFERENCE = re.compile(r":(?:attr|class|const|exc|func|meth|mod|obj):`(~?)([^`]+)`")


def _displayed_math(match: re.Match[str]) -> str:
    return f"\n\\[\n{match[1].strip()}\n\\]\n"


def _reference(match: re.Match[str]) -> str:
    short, target = match.groups()
    title = target.rpartition(".")[2] if short else target
    return f'<autoref identifier="{target}" optional><code>{title}</code></autoref>'


class SphinxRoles(griffe.Extension):
    """Applied to every docstring that mkdocstrings renders."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = DISPLAYED_MATH.sub(_displayed_math, obj.docstring.value)
            text = INLINE_MATH.sub(r"\\(\1\\)", text)
            obj.docstring.value = REFERENCE.sub(_reference, text)
