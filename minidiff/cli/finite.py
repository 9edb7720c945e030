"""Numbers on the command line."""

from __future__ import annotations

import math

import click


class Finite(click.FloatRange):
    """A number in a range, neither infinite nor "nan", which compares as if it lay in every range."""

    name = "float"

    def convert(self, value, param, ctx) -> float:
        """The number, or bad usage."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not finite; a finite number is accepted.", param, ctx)
        return number
