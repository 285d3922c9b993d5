"""Reports for people: every result of kquant as tables, findings first; for machines `to_json`.

    print(report.render(kquant.inspect("model.tflite")))
    report.show(kquant.check(model))
    report.html([kquant.export(qmodel, "m.tflite"), kquant.analyze(qmodel, images)], "report.html")

A result comes in, tables on a terminal, a page, a picture or JSON go out. A new report is one function that
`page.page` registers, in a file that is imported here. What its HTML has beside the tables (plots, bars, a card) is one
that `sheet.sections` or `sheet.card` registers.
"""

# they register their pages
from kquant.report import compression, migration, node_data, pages, projects, size  # noqa: F401  # pyright: ignore[reportUnusedImport]
from kquant.report.html_file import check_html, html
from kquant.report.search import pareto
from kquant.report.tables import Table
from kquant.report.text import arrays_to_json, render, render_arrays, render_table, show, to_json

__all__ = [
    "Table",
    "arrays_to_json",
    "check_html",
    "html",
    "pareto",
    "render",
    "render_arrays",
    "render_table",
    "show",
    "to_json",
]
