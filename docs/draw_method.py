"""Draw the figure of the method in docs/method.md: python docs/draw_method.py [OUTPUT.svg].

The script writes docs/method.svg by default. It uses the standard library alone, and its output is always the same.
Each box names the file in src/anomalib_aprilgan that computes it. Run the script again after a file is renamed.
"""

import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 660, 1046
TITLE, DETAIL, FILE = "title", "detail", "file"
LINE_HEIGHTS = {TITLE: 21, DETAIL: 19, FILE: 19}

FILLS = {
    "input": ("#ffffff", "#8c959f"),
    "text": ("#fbefff", "#a475f9"),
    "frozen": ("#ddf4ff", "#218bff"),
    "trained": ("#fff1e5", "#e16f24"),
    "few-shot": ("#dafbe1", "#2da44e"),
    "scoring": ("#f6f8fa", "#6e7781"),
    "output": ("#fff8c5", "#9a6700"),
}
"""Fill and outline of each kind of box."""

HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">
<title>APRIL-GAN in this package: from class name, image and reference images to anomaly map and image score</title>
<style>
text {{ font-family: Helvetica, Arial, sans-serif; fill: #1f2328; text-anchor: middle }}
.title {{ font-size: 17px; font-weight: bold }}
.detail {{ font-size: 15px }}
.file {{ font-size: 14px; fill: #0550ae }}
.left {{ text-anchor: start }}
path {{ fill: none; stroke: #424a53; stroke-width: 2; marker-end: url(#head) }}
</style>
<defs>
<marker id="head" markerUnits="userSpaceOnUse" markerWidth="11" markerHeight="10" refX="10" refY="5" orient="auto">
<polygon points="0,0 11,5 0,10" fill="#424a53"/></marker></defs>
<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10" fill="#ffffff" stroke="#d0d7de"/>
"""

# Columns: left edge and width. The lines for image embedding and patch tokens run between them.
LEFT, MIDDLE, RIGHT = (12, 182), (244, 176), (464, 184)
EMBEDDING_X, TOKENS_X = 222, 442


def text(x: float, y: float, style: str, words: str) -> str:
    """Return a line of text around x, or from x on for the style ``left``, with its baseline at y."""
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(words)}</text>\n'


def box(kind: str, place: tuple[int, int], top: int, bottom: int, *lines: tuple[str, str]) -> str:
    """Return a box with centred lines of text.

    Args:
        kind: A key of ``FILLS``.
        place: Left edge and width.
        top: Upper edge.
        bottom: Lower edge.
        *lines: Style and words of each line.
    """
    left, width = place
    fill, outline = FILLS[kind]
    shape = f'x="{left}" y="{top}" width="{width}" height="{bottom - top}" rx="6"'
    drawn = f'<rect {shape} fill="{fill}" stroke="{outline}" stroke-width="2"/>\n'
    y = (top + bottom - sum(LINE_HEIGHTS[style] for style, _ in lines)) / 2
    for style, words in lines:
        y += LINE_HEIGHTS[style]
        drawn += text(left + width / 2, y - 5, style, words)
    return drawn


def arrow(*points: tuple[float, float]) -> str:
    """Return a line through points, with an arrowhead at its end."""
    steps = " L".join(f"{x:g},{y:g}" for x, y in points)
    return f'<path d="M{steps}"/>\n'


def centre(place: tuple[int, int]) -> float:
    """Return the x in the middle of a place."""
    return place[0] + place[1] / 2


def inputs_and_towers() -> str:
    """Draw the inputs, the prompts and the two towers of CLIP."""
    tower = (206, 442)
    drawn = box("input", LEFT, 12, 64, (TITLE, "class name"), (DETAIL, "“metal nut”"))
    drawn += box("input", MIDDLE, 12, 64, (TITLE, "image"))
    drawn += box("input", RIGHT, 12, 64, (TITLE, "reference images"), (DETAIL, "k normal images"))
    drawn += "".join(arrow((centre(place), 65), (centre(place), 94)) for place in (LEFT, MIDDLE, RIGHT))
    prompts = ((TITLE, "prompt ensemble"), (DETAIL, "(7 + 5) × 35 texts"), (FILE, "method/prompts.py"))
    drawn += box("text", LEFT, 96, 172, *prompts)
    drawn += arrow((centre(LEFT), 173), (centre(LEFT), 200))
    drawn += box("frozen", LEFT, 202, 278, (TITLE, "CLIP text tower"), (DETAIL, "frozen"), (FILE, "method/clip.py"))
    drawn += arrow((centre(LEFT), 279), (centre(LEFT), 314))
    drawn += box("frozen", tower, 96, 248)
    drawn += text(centre(tower), 119, TITLE, "CLIP image tower")
    drawn += text(centre(tower), 139, DETAIL, "a frozen ViT, four stages")
    drawn += text(centre(tower), 159, FILE, "method/clip.py")
    for number, block in enumerate((6, 12, 18, 24)):
        x = tower[0] + 13 + 108 * number
        drawn += box("input", (x, 92), 170, 198, (DETAIL, f"block {block}"))
        drawn += arrow((x + 93, 184), (x + 106, 184)) if block < 24 else ""
    drawn += text(EMBEDDING_X - 8, 220, "detail left", "image") + text(EMBEDDING_X - 8, 239, "detail left", "embedding")
    drawn += text(centre(MIDDLE) + 24, 239, DETAIL, "patch tokens")
    drawn += text(centre(RIGHT), 239, DETAIL, "reference tokens")
    return drawn


def features_and_stages() -> str:
    """Draw text features, adapters and memory banks, then the two comparisons."""
    features = ((TITLE, "text features"), (DETAIL, "normal, abnormal"), (FILE, "method/text_features.py"))
    adapters = ((TITLE, "linear adapters"), (DETAIL, "one per stage"), (FILE, "method/adapters.py"))
    banks = ((TITLE, "memory banks"), (DETAIL, "one per stage"), (FILE, "method/memory_bank.py"))
    similarity = (LEFT[0], MIDDLE[0] + MIDDLE[1] - LEFT[0])
    distance = ((TITLE, "distance to the"), (TITLE, "nearest token"), (FILE, "method/memory_bank.py"))
    drawn = box("text", LEFT, 316, 392, *features)
    drawn += box("trained", MIDDLE, 316, 392, *adapters) + box("few-shot", RIGHT, 316, 392, *banks)
    drawn += arrow((centre(MIDDLE), 249), (centre(MIDDLE), 314)) + arrow((centre(RIGHT), 249), (centre(RIGHT), 314))
    drawn += arrow((EMBEDDING_X, 249), (EMBEDDING_X, 428))
    drawn += arrow((centre(MIDDLE), 280), (TOKENS_X, 280), (TOKENS_X, 468), (RIGHT[0] - 2, 468))
    drawn += f'<circle cx="{centre(MIDDLE):g}" cy="280" r="4" fill="#424a53"/>\n'
    drawn += "".join(arrow((centre(place), 393), (centre(place), 428)) for place in (LEFT, MIDDLE, RIGHT))
    compare = ((TITLE, "similarity with the text features"), (DETAIL, "cosine × 100"), (FILE, "method/scoring.py"))
    drawn += box("scoring", similarity, 430, 506, *compare) + box("few-shot", RIGHT, 430, 506, *distance)
    return drawn


def maps_and_scores() -> str:
    """Draw the maps and the scores."""
    drawn = "".join(arrow((centre(place), 507), (centre(place), 542)) for place in (LEFT, MIDDLE, RIGHT))
    score = ((TITLE, "zero-shot score"), (DETAIL, "softmax"), (FILE, "method/scoring.py"))
    zero_shot = ((TITLE, "zero-shot map"), (DETAIL, "upsample, softmax,"), (DETAIL, "sum over stages"))
    few_shot = ((TITLE, "distance map"), (DETAIL, "upsample,"), (DETAIL, "sum over stages"))
    drawn += box("scoring", LEFT, 544, 640, *score)
    drawn += box("scoring", MIDDLE, 544, 640, *zero_shot, (FILE, "method/scoring.py"))
    drawn += box("few-shot", RIGHT, 544, 640, *few_shot, (FILE, "method/scoring.py"))
    drawn += arrow((centre(MIDDLE), 641), (centre(MIDDLE), 676)) + arrow((centre(RIGHT), 641), (centre(RIGHT), 676))
    both = (MIDDLE[0], RIGHT[0] + RIGHT[1] - MIDDLE[0])
    sum_of_maps = (
        (TITLE, "anomaly map"),
        (DETAIL, "(zero-shot map + distance map) / number of stages"),
        (FILE, "torch_model.py"),
    )
    drawn += box("output", both, 678, 754, *sum_of_maps)
    drawn += arrow((centre(both), 755), (centre(both), 790)) + arrow((centre(LEFT), 641), (centre(LEFT), 790))
    drawn += text(centre(both) + 10, 778, "detail left", "maximum, if k > 0")
    everything = (LEFT[0], RIGHT[0] + RIGHT[1] - LEFT[0])
    final = ((DETAIL, "k = 0: zero-shot score"), (DETAIL, "k > 0: mean of zero-shot score and scaled map maximum"))
    drawn += box("output", everything, 792, 892, (TITLE, "image score"), *final, (FILE, "method/scoring.py"))
    return drawn


def training() -> str:
    """Draw the training of the adapters, and the legend."""
    drawn = text(LEFT[0], 926, "title left", "Training of the adapters, on labelled images of other classes")
    drawn += box("scoring", LEFT, 938, 1000, (DETAIL, "map of each stage,"), (DETAIL, "mask of the defect"))
    drawn += arrow((LEFT[0] + LEFT[1] + 1, 969), (MIDDLE[0] - 2, 969))
    drawn += box("trained", MIDDLE, 938, 1000, (TITLE, "focal + dice loss"), (FILE, "method/losses.py"))
    drawn += arrow((MIDDLE[0] + MIDDLE[1] + 1, 969), (RIGHT[0] - 2, 969))
    drawn += box("trained", RIGHT, 938, 1000, (TITLE, "adapters updated"), (FILE, "lightning_model.py"))
    x = LEFT[0]
    for kind, words, step in (("frozen", "frozen", 92), ("trained", "trained", 96), ("few-shot", "few-shot, k > 0", 0)):
        drawn += box(kind, (x, 18), 1016, 1034) + text(x + 26, 1030, "detail left", words)
        x += step
    return drawn


def main(output: str | None = None) -> None:
    """Write the figure."""
    path = Path(output) if output else Path(__file__).with_name("method.svg")
    drawing = HEAD + inputs_and_towers() + features_and_stages() + maps_and_scores() + training() + "</svg>\n"
    path.write_text(drawing, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
