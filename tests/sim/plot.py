"""The picture of the curve, drawn from the committed table.

    PYTHONPATH=. .venv/bin/python tests/sim/plot.py

reads `CURVE.md` and writes `curve.png` beside it. The picture names the table it was drawn from, so that
`test_sim_curve.py` notices one that was left behind.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).parent
TABLE, PICTURE = HERE / "CURVE.md", HERE / "curve.png"
COLOURS = ("#7fb3d5", "#2e74b5", "#12284c")
"""One a loss: losses are ordered, and so are shades of one colour, on paper without any, too."""
PANELS = (
    ("Image time", "seconds", lambda row: row["seconds"]),
    ("Bytes on the wire", "multiples of the image", lambda row: row["wire x image"]),
    ("ACK at the server, mean", "datagrams per second", lambda row: row["ACK"] / row["seconds"]),
    ("NACK at the server, peak", "datagrams per second", lambda row: row["peak NACK/s"]),
)


def read(text: str) -> list[dict[str, float]]:
    """The rows of the table by the names of its columns; loss in percent."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [{name: float(cell.rstrip("%")) for name, cell in zip(names, row, strict=True)} for row in rows]


def digest(text: str) -> str:
    """What the picture says of the table it was drawn from."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return "sha256 of the table: " + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def draw(text: str, to: Path) -> None:
    """Draw the table as a PNG, with nothing in it that changes from day to day."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = read(text)
    title = next(line for line in text.splitlines() if line.endswith("ms"))
    losses = sorted({row["loss"] for row in rows})
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for axis, (name, unit, value) in zip(axes.flat, PANELS, strict=True):
        for loss, colour in zip(losses, COLOURS, strict=True):
            line = [row for row in rows if row["loss"] == loss]
            axis.plot(
                [row["clients"] for row in line],
                [value(row) for row in line],
                color=colour,
                marker="o",
                markersize=4,
                label=f"{loss:g} %",
            )
        axis.set_xscale("log")
        axis.set_xticks(sorted({row["clients"] for row in rows}), minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("clients")
        axis.set_ylabel(unit)
        axis.grid(color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(title="loss at each client", frameon=False)
    figure.suptitle(title, fontsize=11)
    said = {"Software": None, "Description": digest(text)}
    figure.savefig(to, dpi=80, metadata=said, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    draw(TABLE.read_text(), PICTURE)
