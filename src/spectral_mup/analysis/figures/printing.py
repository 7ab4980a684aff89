"""How figures are printed: the part `figures` of the config, but for which are drawn. matplotlib is imported only to draw."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from spectral_mup.analysis.names import printed
from spectral_mup.config.schema import FiguresConfig
from spectral_mup.errors import ConfigError

DEJAVU = "DejaVu Sans"  # ships with matplotlib: the same bytes on every machine

STYLE = {
    "pdf.fonttype": 42,  # the default embeds Type 3 fonts, which publishers refuse
    "axes.titlesize": "medium", "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.0, "legend.frameon": False, "svg.hashsalt": "spectral_mup",
}  # fmt: skip


@dataclass(frozen=True)
class Printing:
    """The keys of `figures` in conf/config.yaml, with the same defaults."""

    width: float = 6.75  # inches
    font: str = DEJAVU
    size: float = 7.2  # points of all text, at every width
    note: bool = False  # write the caption into the figure too
    full: bool = False  # lr_transfer: all losses, not those near the optima alone
    labels: Mapping[str, str] = field(default_factory=dict)
    style: str | None = None  # a style file of matplotlib, merged last

    @classmethod
    def of(cls, figures: FiguresConfig) -> "Printing":
        """Return what the config says."""
        return cls(**figures.model_dump(exclude={"only", "labels"}), labels=figures.labels or {})

    def name(self, name: str) -> str:
        """Return what a rule, optimizer or family is called."""
        return printed(name, self.labels)

    def context(self) -> AbstractContextManager[None]:
        """Return matplotlib's settings while a figure is drawn and saved.

        Width and size are rcParams there, which a style may change. Raises ConfigError for a font or a style that matplotlib
        does not find.
        """
        import matplotlib.style

        own: dict[str, Any] = {"font.family": self.font, "font.size": self.size, "figure.figsize": (self.width, 2.0)}
        if self.font != DEJAVU:
            _refuse_unknown(self.font)
            own["mathtext.fontset"] = "stix"
        if self.style is not None and self.style not in matplotlib.style.available:
            try:
                matplotlib.rc_params_from_file(self.style, use_default_template=False)
            except OSError as error:
                known = ", ".join(matplotlib.style.available[:3])
                raise ConfigError(
                    f"figures.style={self.style}: {error.strerror or error}; give the path of a matplotlib style file, or a "
                    f"name that matplotlib knows, as {known}"
                ) from None
        return matplotlib.style.context(["default", {**STYLE, **own}, *([self.style] if self.style else [])])


def _refuse_unknown(font: str) -> None:
    from matplotlib import font_manager

    families = {"serif", "sans-serif", "monospace", "cursive", "fantasy"}
    if font not in families | {entry.name for entry in font_manager.fontManager.ttflist}:
        raise ConfigError(f"figures.font={font}: matplotlib finds no such font; install it, or take {DEJAVU} or serif")
