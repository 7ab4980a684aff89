"""Figures as matplotlib wrote them, made fit to stand inside a page: a third of the bytes, and no two with the same id."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

SVG, XLINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
LEFT_OUT = {f"{{{SVG}}}{tag}" for tag in ("metadata", "style")}  # its style sheet would hold for the whole page
DEFS, GROUP = f"{{{SVG}}}defs", f"{{{SVG}}}g"
LONG = re.compile(r"-?\d+\.\d{3,}")  # a number with more digits than a hundredth of a point
COORDINATES = ("d", "x", "y", "points", "width", "height")

ET.register_namespace("", SVG)


class Symbols:
    """Glyphs, markers and clips that figures refer to, each kept once: matplotlib calls them by a digest of what they are."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def keep(self, symbol: ET.Element) -> str:
        """Return the id under which figures find it; a new one where another symbol has its own."""
        name = symbol.get("id", "")
        while self._kept.get(name, markup := ET.tostring(symbol, "unicode")) != markup:
            name += "_"
            symbol.set("id", name)
        self._kept[name] = markup
        return name

    @property
    def markup(self) -> str:
        """One hidden drawing that holds them all."""
        kept = "".join(self._kept.values()).replace(f' xmlns="{SVG}"', "")
        return f'<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>{kept}</defs></svg>'


def inline(drawn: str, symbols: Symbols, title: str) -> str:
    """Return an <svg> element of the same look, named by `title` to who does not see it; it scales with its box."""
    root = ET.fromstring(drawn)
    renamed: dict[str, str] = {}
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in LEFT_OUT:
                parent.remove(child)
    for element in root.iter():
        _shorten(element)
    for parent in [*root.iter()]:
        for defs in [child for child in parent if child.tag == DEFS]:
            renamed |= {symbol.get("id", ""): symbols.keep(symbol) for symbol in defs}
            parent.remove(defs)
    for element in root.iter():
        for key, value in [*element.items()]:
            if key == XLINK:
                del element.attrib[key]
                element.set("href", "#" + renamed.get(value[1:], value[1:]))
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{renamed.get(m[1], m[1])})", value))
        element.attrib.pop("id", None)
        element[:] = _without_bare_groups(element)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    said = ET.Element(f"{{{SVG}}}title")
    said.text = title
    root.insert(0, said)
    return ET.tostring(root, "unicode").replace(f' xmlns="{SVG}"', "")


def _shorten(element: ET.Element) -> None:
    """Round coordinates to a hundredth of a point, and drop spaces that mean nothing."""
    element.tail = None
    element.text = element.text if (element.text or "").strip() else None
    for key, value in element.items():
        if key in COORDINATES:
            element.set(key, " ".join(LONG.sub(_rounded, value).split()))
        elif key == "transform":
            element.set(key, re.sub(r"translate\([^)]*\)", lambda m: LONG.sub(_rounded, m[0]), value))
        elif key == "style":
            element.set(key, re.sub(r"([:;]) ", r"\1", value))


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".") if float(number[0]) else "0"


def _without_bare_groups(parent: Iterable[ET.Element]) -> list[ET.Element]:
    """Children, with those of a group that says nothing in its place."""
    found: list[ET.Element] = []
    for child in parent:
        bare = child.tag == GROUP and not set(child.attrib) - {"id"}
        found += _without_bare_groups(child) if bare else [child]
    return found
