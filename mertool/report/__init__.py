"""The stage `report`: one JSON document of runs, and a page, tables, a model card and a checklist made from it.

`chain` finds the runs and the files that they were made from, `document` gathers all facts of them, `render` writes
the files. Nothing is trained or predicted here; scores are computed from saved predictions or taken from metrics.json.
"""

from mertool.report.stage import report

__all__ = ["report"]
