"""Starts a generation on the way that was asked for, and shows it while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from paceline.launch.console import make_console
from paceline.launch.language.local import generate_local
from paceline.launch.language.torchrun import generate_launched
from paceline.launch.language.view import StreamView, print_texts, show_summary
from paceline.launch.summary import Summary
from paceline.launch.torchrun import Launched
from paceline.runtime.language.models import Models
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.spec import GenerateSpec

__all__ = ["start"]


def start(
    spec: GenerateSpec, models: Models, launched: Launched | None, show: bool, hang_timeout_s: float, debug: bool
) -> Summary | None:
    """Generate with the models of the spec. With `show`, a single session's text is printed as it comes, those of
    several at the end, and a table of figures behind. Returns the summary, on other ranks than the first verifier's
    None."""
    home = launched is None or launched.rank == Roles.of(spec.topology).first
    live = show and home and len(spec.prompts) == 1
    views: list[StreamView] = []

    def watch(stream: Path) -> Callable[[int], None] | None:
        if not live:
            return None
        views.append(StreamView(stream, sys.stdout, spec.prompts[0]))
        return views[0]

    if launched is None:
        summary: Summary | None = generate_local(spec, watch, hang_timeout_s, debug, models=models)
    else:
        summary = generate_launched(spec, models, launched, watch)
    if summary is not None and show:
        if views:
            views[0].close()
        else:
            print_texts(spec.prompts, summary)
        show_summary(make_console(), summary)
    return summary
