"""Fails when fewer tests ran than `.ci/expected-tests` says, so that tests cannot vanish unseen.

A test that skips because photos outside the repository are absent ("data" in its reason) counts as run, and is listed.
Whoever adds or removes tests sets the number: passed plus skipped for absent data, as this script prints it.

Usage: count_tests.py JUNIT_XML EXPECTED_FILE
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(junit: Path, expected_file: Path) -> int:
    """Counts the report's tests and returns the exit code."""
    expected = int(expected_file.read_text().strip())
    passed, absent = 0, 0
    for case in ET.parse(junit).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            absent += "data" in reason.lower()
            print(f"skipped: {case.get('classname')}.{case.get('name')}: {reason}")
        elif case.find("failure") is None and case.find("error") is None:
            passed += 1
    print(f"{passed} tests passed, {absent} skipped for absent data; {expected} expected")
    if passed + absent < expected:
        print(f"{expected - passed - absent} tests fewer than {expected_file} expects")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
