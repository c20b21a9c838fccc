import logging

from videotrain.logfile import LogFile, logging_to, open_log


def test_lines_are_appended(tmp_path):
    for text in ("first", "second"):
        with logging_to(open_log(tmp_path / "logs" / "x.log")):
            logging.getLogger("here").info(text)
    assert [line.split()[-1] for line in (tmp_path / "logs" / "x.log").read_text().splitlines()] == ["first", "second"]


def test_a_full_disk_costs_lines_and_shows_no_trace(capsys):
    log = LogFile("/dev/full")
    with logging_to(log):
        for _ in range(3):
            logging.getLogger("here").info("does not fit")
    assert log.lost >= 3
    assert capsys.readouterr().err == ""


def test_a_mistake_in_a_log_line_is_still_shown(tmp_path, capsys):
    log = open_log(tmp_path / "x.log")
    log.handle(logging.LogRecord("here", logging.INFO, __file__, 1, "%d", ("no number",), None))
    log.close()
    assert "no number" in capsys.readouterr().err
    assert log.lost == 0
