"""Figure of the method in README: data flow, the two phases of the dLDM, where gradients flow and where they stop.

    python docs/method_figure.py > docs/method.svg

Plain SVG that follows the reader's light or dark setting. What it shows is the table of stop-gradients in concepts.md.
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 720, 742
BOX_HEIGHT = 46
STYLE = """
svg { --paper: #ffffff; --panel: #f4f5f7; --ink: #1d2126; --muted: #5c6570; --line: #aab2bd; --box: #ffffff;
      --gradient: #c2410c; --code: #1d4ed8 }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14171b; --panel: #1d2126; --ink: #f0f2f4; --muted: #a3adb8; --line: #5f6975; --box: #2a2f36;
        --gradient: #fb923c; --code: #8ab4ff }
}
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); text-anchor: middle }
.title { font-size: 16px; font-weight: 600; text-anchor: start }
.note { font-size: 13px; fill: var(--muted) }
.left { text-anchor: start }
.loss { font-size: 13px; fill: var(--gradient) }
.paper { fill: var(--paper) } .panel { fill: var(--panel) }
.box { fill: var(--box); stroke: var(--line) } .codes { stroke: var(--code); stroke-width: 2 }
.flow { fill: none; stroke: var(--ink); stroke-width: 1.5; marker-end: url(#flow) }
.gradient { fill: none; stroke: var(--gradient); stroke-width: 2; stroke-dasharray: 5 4; marker-end: url(#gradient) }
.stop { stroke: var(--gradient); stroke-width: 4 }
#flow path { fill: var(--ink) } #gradient path { fill: var(--gradient) }
"""
MARKER = (
    '<marker id="{0}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{1}" markerHeight="{1}" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
)


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """Return a line of text; `x` is its middle, or its start for the kinds `title` and `left`."""
    return f'<text class="{kind}" x="{x}" y="{y}">{content}</text>'


def box(x: float, y: float, width: float, lines: Sequence[str], kind: str = "") -> str:
    """Return a box with one or two lines of text, its upper left corner at (x, y)."""
    first = y + BOX_HEIGHT / 2 + (5 if len(lines) == 1 else -4)
    inside = "".join(text(x + width / 2, first + 17 * i, line) for i, line in enumerate(lines))
    return f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="7"/>{inside}'


def path(kind: str, *points: tuple[float, float]) -> str:
    """Return a line through points: of kind `flow` or `gradient` an arrow, of kind `stop` a bar."""
    return f'<path class="{kind}" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>'


def panel(y: float, height: float, title: str) -> str:
    """Return the ground of a panel and its title."""
    ground = f'<rect class="panel" x="10" y="{y}" width="{WIDTH - 20}" height="{height}" rx="10"/>'
    return ground + text(26, y + 27, title, "title")


def phase_one(y: float) -> list[str]:
    """Return the panel of phase 1."""
    top = y + 76
    middle = top + BOX_HEIGHT / 2
    return [
        panel(y, 186, "Phase 1: the dLDM reconstructs a clip through a few discrete codes"),
        box(26, top, 96, ["clip,", "no actions"]),
        path("flow", (122, middle), (152, middle)),
        box(154, top, 130, ["causal encoder,", "queries"]),
        path("flow", (284, middle), (314, middle)),
        box(316, top, 110, ["latent codes", "(FSQ)"], "codes"),
        path("flow", (426, middle), (456, middle)),
        box(458, top, 100, ["decoder"]),
        path("flow", (558, middle), (588, middle)),
        box(590, top, 104, ["the clip", "again"]),
        path("flow", (219, top), (219, top - 14), (508, top - 14), (508, top - 2)),
        text(364, top - 19, "first frame, f₀", "note"),
        path("gradient", (642, top + 48), (642, top + 78), (219, top + 78), (219, top + 50)),
        path("gradient", (508, top + 78), (508, top + 50)),
        text(430, top + 97, "reconstruction loss: encoder, queries, decoder", "loss"),
    ]


def phase_two(y: float) -> list[str]:
    """Return the panel of phase 2."""
    top, low = y + 76, y + 176
    middle, low_middle = top + BOX_HEIGHT / 2, low + BOX_HEIGHT / 2
    return [
        panel(y, 276, "Phase 2: the codes learn what a video model needs"),
        box(26, top, 96, ["clip,", "no actions"]),
        path("flow", (122, middle), (152, middle)),
        box(154, top, 130, ["causal encoder,", "queries"]),
        path("flow", (284, middle), (314, middle)),
        box(316, top, 110, ["latent codes", "(FSQ)"], "codes"),
        path("flow", (426, middle), (546, middle)),
        box(548, top, 146, ["video diffusion", "model"]),
        path("gradient", (621, top), (621, top - 16), (219, top - 16), (219, top - 2)),
        path("gradient", (371, top - 16), (371, top - 2)),
        text(496, top - 22, "denoising loss: all of this row", "loss"),
        # Into the decoder, detached: codes and first frame. Out of it, detached: the coarse video.
        path("flow", (371, top + BOX_HEIGHT), (371, low - 2)),
        path("stop", (359, top + 66), (383, top + 66)),
        text(392, top + 71, "stop", "loss left"),
        path("flow", (219, top + BOX_HEIGHT), (219, low_middle), (314, low_middle)),
        path("stop", (207, top + 66), (231, top + 66)),
        text(240, top + 71, "stop, f₀", "loss left"),
        box(316, low, 110, ["decoder"]),
        path("flow", (426, low_middle), (456, low_middle)),
        box(458, low, 110, ["coarse video"]),
        path("flow", (568, low_middle), (621, low_middle), (621, top + BOX_HEIGHT + 2)),
        path("stop", (609, top + 66), (633, top + 66)),
        text(642, top + 71, "stop", "loss left"),
        path("gradient", (513, low + 48), (513, low + 70), (371, low + 70), (371, low + 50)),
        text(513, low + 88, "reconstruction loss: the decoder alone", "loss"),
    ]


def policy(y: float) -> list[str]:
    """Return the panel of the policy."""
    top = y + 76
    middle = top + BOX_HEIGHT / 2
    return [
        panel(y, 216, "Policy: first the codes, then actions from a fraction of the labels"),
        box(26, top, 118, ["image,", "instruction"]),
        path("flow", (144, middle), (172, middle)),
        box(174, top, 130, ["autoregressive", "transformer"]),
        path("flow", (304, middle), (332, middle)),
        box(334, top, 112, ["latent action", "tokens"], "codes"),
        path("flow", (446, middle), (474, middle)),
        box(476, top, 100, ["action head"]),
        path("flow", (576, middle), (604, middle)),
        box(606, top, 88, ["actions"]),
        text(390, top - 20, "targets: codes of the frozen dLDM", "note"),
        path("flow", (390, top - 15), (390, top - 2)),
        path("gradient", (390, top + 48), (390, top + 70), (262, top + 70), (262, top + 50)),
        text(326, top + 88, "code loss: all video, no label", "loss"),
        path("gradient", (650, top + 48), (650, top + 104), (216, top + 104), (216, top + 50)),
        path("gradient", (526, top + 104), (526, top + 50)),
        text(434, top + 122, "action loss: labeled trajectories; head and transformer", "loss"),
    ]


def figure() -> str:
    """Return the figure as SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        "<title>Video becomes codes in two phases; a policy predicts codes and then actions</title>",
        f"<style>{STYLE}</style><defs>{MARKER.format('flow', 8)}{MARKER.format('gradient', 10)}</defs>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="12"/>',
        *phase_one(10),
        *phase_two(206),
        *policy(492),
        path("flow", (26, 728), (62, 728)),
        text(70, 733, "data", "note left"),
        path("gradient", (126, 728), (162, 728)),
        text(170, 733, "gradient", "note left"),
        path("stop", (250, 718), (250, 738)),
        text(260, 733, "stop-gradient", "note left"),
        "</svg>",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(figure())
