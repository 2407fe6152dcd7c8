"""The report for people: one HTML file that needs nothing else, for any browser, light or dark, wide or narrow."""

from quantkit.drift.report.page import check_installed, render, write_report

__all__ = ["check_installed", "render", "write_report"]
