"""What `eval.py SUITE --help` says beside the flags: the metrics of a suite."""

from ecliptica.evaluation.suites import Suite


def first_line(about: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(about.split("\n\n")[0].split())
    for end in ("? ", ". ", ": "):
        if end in paragraph:
            return paragraph[: paragraph.index(end) + 1].rstrip(":")
    return paragraph


def of_suite(suite: Suite) -> str:
    """A line a metric: name, title, null value, what it is blind to."""
    lines = ["metrics:"]
    for metric in suite.metrics():
        if not getattr(metric, "shown", True):
            continue
        null = "stated per run" if callable(metric.null) else metric.null
        line = f"  {metric.name}: {metric.title}"
        if null is not None:
            line += f"; null: {null}"
        if metric.blind_to:
            line += f"; blind to {metric.blind_to}"
        lines.append(line)
    return "\n".join(lines)
