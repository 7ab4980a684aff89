"""The print rules of a figure: fits the page, no font under 7 pt, nothing overlaps, nothing is cut off."""

import matplotlib.text


def texts(artist) -> list[str]:
    """All that is written in a figure, or in axes of it."""
    return [t.get_text() for t in artist.findobj(matplotlib.text.Text) if t.get_text().strip()]


def assert_printable(figure, texts_in_panels=False, width=6.75):
    """Check a drawn figure, so many inches wide; `texts_in_panels`: texts inside panels too must keep apart."""
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= width
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) >= 7
    written = [t for ax in figure.axes for t in (ax._left_title, ax.xaxis.label, ax.yaxis.label) if t.get_text().strip()]
    written += [t for ax in figure.axes for t in ax.texts if t.get_text().strip()] if texts_in_panels else []
    keep_apart = [*figure.texts, *figure.legends, *written]
    inside = figure.bbox.padded(1)
    boxes = [t.get_window_extent() for t in keep_apart]
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for ax in figure.axes:
        for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
            spots = [t.get_window_extent() for t in ticks if t.get_text() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in zip(spots, spots[1:], strict=False))
        if ax.axison and (legend := ax.get_legend()):  # a legend inside a panel covers no mark
            box = legend.get_window_extent()
            lines = [line for line in ax.lines if line.get_marker() not in ("None", "")]
            marks = [xy for line in lines for xy in line.get_transform().transform(line.get_xydata())]
            assert box.x1 <= ax.bbox.x1 + 1 and not any(box.contains(*xy) for xy in marks)
