"""The charts of the page as Vega-Lite. They hold no data: the page's script fills them with what is
asked for, and sets their parameters. Axes of Vega-Lite have fixed titles: that of a curve's values
is the title of its chart, and that of its other axis stands below it, in HTML.
"""

import altair as alt

from kvbudget.paper.plots import style

#: Names of the data that the script fills.
POINTS, LEVELS, HEADS, SLOTS, SCORER = "points", "levels", "heads", "slots", "scorer"
FONT = "system-ui, sans-serif"
GREY = "#767676"
#: As in the paper: what is a factor of eight off the mean is as dark as it gets.
FACTOR = 8


def all_charts() -> dict[str, dict]:
    """Every chart of the page by the id of its place."""
    curve = curves().to_dict()
    charts = {"quality": curve, "memory": curve, "speed": curve}
    charts |= {"signals": signals().to_dict(), "slots": slots().to_dict()}
    return charts | {"scorer": scorer().to_dict()}


def curves() -> alt.LayerChart:
    """A number of the methods over budget or length, with its interval; the full cache over budget
    is a level with a band, as chance is."""
    title, low, high = (alt.param(n, value=v) for n, v in (("title", ""), ("low", 0), ("high", 1)))
    x = alt.X("x:Q", title=None, axis=alt.Axis(tickCount=6, grid=False))
    y_axis = alt.Axis(title=None, tickCount=6)
    y_scale = alt.Scale(domain=[alt.expr("low"), alt.expr("high")], nice=True, zero=False)
    y = alt.Y("value:Q", axis=y_axis, scale=y_scale)
    look = alt.Color("colour:N", scale=None)
    tips = [
        alt.Tooltip(f"{name}:N", title=title)
        for name, title in {
            "title": "method",
            "budget": "budget",
            "said": "value",
            "interval": "95% interval",
            "bytes": "planned",
            "tokens": "tokens kept",
            "bits": "bits",
            "counts": "measured on",
        }.items()
    ]
    levels = alt.Chart(alt.NamedData(LEVELS))
    points = alt.Chart(alt.NamedData(POINTS))
    band = levels.mark_rect(opacity=0.1).encode(
        y=alt.Y("low:Q", axis=y_axis, scale=y_scale), y2="high:Q", color=look
    )
    level = levels.mark_rule(strokeWidth=1.5).encode(
        y=y,
        color=look,
        strokeDash=alt.StrokeDash("dash:N", scale=None),
        tooltip=tips,
        href="href:N",
    )
    # Methods whose numbers are alike stand side by side, each by a few pixels off its place.
    aside = {"xOffset": alt.expr("datum.aside")}
    bars = points.mark_rule(strokeWidth=1.2, opacity=0.7, **aside).encode(
        x=x, y=alt.Y("low:Q", axis=y_axis, scale=y_scale), y2="high:Q", color=look
    )
    lines = points.mark_line(strokeWidth=1.5, opacity=0.8, **aside).encode(
        x=x, y=y, color=look, detail="method:N"
    )
    marks = points.mark_point(size=60, strokeWidth=1.5, opacity=1, **aside).encode(
        x=x,
        y=y,
        stroke=look,
        fill=alt.Fill("fill:N", scale=None),
        shape=alt.Shape("shape:N", scale=None),
        tooltip=tips,
        href="href:N",
    )
    layers = alt.layer(band, level, bars, lines, marks).add_params(title, low, high)
    said = alt.TitleParams(alt.expr("title"), anchor="start", fontSize=13, fontWeight="normal")
    return _sized(layers, height=320).properties(title=said)


def signals() -> alt.Chart:
    """What each query head does, layer by layer, by one signal."""
    chart = alt.Chart(alt.NamedData(HEADS)).mark_rect()
    return _sized(
        chart.encode(
            x=_layer(),
            y=alt.Y("query_head:O", title="query head"),
            color=alt.Color(
                "value:Q",
                title=None,
                scale=alt.Scale(scheme=style.HEAT, domainMin=0),
                legend=_bar(tickCount=4),
            ),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("query_head:O", title="query head"),
                alt.Tooltip("kv_head:O", title="KV head"),
                alt.Tooltip("class:N"),
                alt.Tooltip("value:Q", format=".3f"),
            ],
        ),
    )


def slots() -> alt.LayerChart:
    """Tokens that each KV head keeps, over the mean of all; letters are the classes of heads."""
    chart = alt.Chart(alt.NamedData(SLOTS))
    shade = alt.Color(
        "share:Q",
        title=None,
        scale=alt.Scale(
            type="log", base=2, domain=[1 / FACTOR, FACTOR], clamp=True, scheme=style.HEAT
        ),
        legend=_bar(
            values=[1 / FACTOR, 1 / 2, 1, 2, FACTOR],
            labelExpr="datum.value < 1 ? '1/' + 1 / datum.value : datum.value",
        ),
    )
    tips = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("kv_head:O", title="KV head"),
        alt.Tooltip("class:N"),
        alt.Tooltip("slots:Q", title="tokens kept", format=",.1f"),
        alt.Tooltip("share:Q", title="over the mean", format=".2f"),
    ]
    y = alt.Y("kv_head:O", title="KV head")
    rects = chart.mark_rect().encode(x=_layer(), y=y, color=shade, tooltip=tips, href="href:N")
    letters = chart.mark_text(fontSize=9).encode(
        x=_layer(), y=y, text="letter:N", color=alt.Color("ink:N", scale=None)
    )
    return _sized(alt.layer(rects, letters).resolve_scale(color="independent"))


def scorer() -> alt.Chart:
    """Of all scores, what the tokens predicted best have over what the truly best would have."""
    chart = alt.Chart(alt.NamedData(SCORER)).mark_line(point=alt.OverlayMarkDef(size=50, opacity=1))
    return _sized(
        chart.encode(
            x=alt.X("share:Q", title="tokens kept", axis=alt.Axis(format="%", tickCount=5)),
            y=alt.Y(
                "kept:Q",
                title="scores kept, of the best possible",
                axis=alt.Axis(format="%", tickCount=5),
                scale=alt.Scale(domain=[0, 1]),
            ),
            color=alt.value(style.KNOWN["head-aware"][0]),
            tooltip=[alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("kept:Q", format=".1%")],
        ),
        height=200,
    )


def _layer() -> alt.X:
    # Every fifth layer is labelled, so that a phone has room.
    axis = alt.Axis(labelAngle=0, labelExpr="datum.value % 5 ? '' : datum.value", ticks=False)
    return alt.X("layer:O", title="layer", axis=axis)


def _bar(**legend: object) -> alt.Legend:
    """The legend of a heat map, above it, so that the map has the whole width."""
    return alt.Legend(orient="top", gradientLength=200, gradientThickness=10, **legend)


def _sized(chart: alt.Chart | alt.LayerChart, height: int = 100) -> alt.Chart | alt.LayerChart:
    return chart.properties(
        width="container",
        height=height,
        background="transparent",
    ).configure(
        font=FONT,
        axis=alt.AxisConfig(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            gridColor="#e4e4e4",
            domainColor=GREY,
            tickColor=GREY,
        ),
        view=alt.ViewConfig(stroke=None),
    )
