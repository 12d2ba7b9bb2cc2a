"""Fails when fewer tests ran than expected, or a test skipped that never may, so that tests cannot vanish unseen.

A test that skips because photos outside the repository are absent ("data" in its reason) counts as run, and is listed.
Whoever adds tests sets the number: passed plus skipped for absent data, as this script prints it. It falls only in a
commit that lists each promise that was dropped.

Usage: count_tests.py EXPECTED_FILE JUNIT_XML...
"""

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(expected_file: Path, reports: list[Path]) -> int:
    """Counts the reports' tests and returns the exit code."""
    expected = int(expected_file.read_text().strip())
    passed, absent, browsers = 0, 0, 0
    for case in (case for report in reports for case in ET.parse(report).iter("testcase")):
        skipped = case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            absent += "data" in reason.lower()
            browsers += "chromium" in reason.lower()
            print(f"skipped: {case.get('classname')}.{case.get('name')}: {reason}")
        elif case.find("failure") is None and case.find("error") is None:
            passed += 1
    print(f"{passed} tests passed, {absent} skipped for absent data; {expected} expected")
    if browsers and os.environ.get("CI"):
        print(f"{browsers} tests of the page skipped, and Chromium is installed for them: see why")
        return 1
    if passed + absent < expected:
        print(f"{expected - passed - absent} tests fewer than {expected_file} expects")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(report) for report in sys.argv[2:]]))
