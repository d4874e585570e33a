"""Fills the `.j2` templates of this folder in: pages that fetch nothing when opened."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gptjax.eval.report.tables import format_interval, format_number, format_short

# Autoescape: a text from a run, or from a model, is never taken for HTML.
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters.update(
    figure=format_number,
    interval=format_interval,
    or_dash=lambda count: f'{count:,}' if count else '–',
    short=format_short,
    thousands='{:,}'.format,
)


def render(template: str, **values) -> Markup:
    """The HTML of a template, which other templates do not escape again."""
    return Markup(ENVIRONMENT.get_template(template).render(values))
