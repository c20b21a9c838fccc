"""W/report.html: one self-contained page that tells how a run went and what it cost."""

from videotrain.report.page import write_report

__all__ = ["write_report"]
