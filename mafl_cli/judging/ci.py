"""For CI jobs: JUnit files and GitHub annotations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

from mafl_cli.judging.robustness_card import error_of, judged_name
from mafl_cli.names import harmless, in_one_line
from mafl_cli.results.evaluation_report import Evaluation
from mafl_cli.results.gate_report import GateResult
from mafl_cli.results.quantities import EVALUATED

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Evaluation) -> str:
    """One test for each gate and case (gates on a mean or the like: one test); without gates one for each case."""
    suites = ElementTree.Element("testsuites", name="mafl")
    suite = ElementTree.SubElement(suites, "testsuite", name=_xml(f"mafl {judged_name(report)}"), time="0")
    for gate in report.gates:
        for name, status, reason in _tests(gate):
            _add_test(suite, f"fail if {gate.expression}", name, status, reason)
    if not report.gates:
        for case in report.cases:
            _add_test(suite, "evaluate", case.case_id, "pass" if case.status == "ok" else "error", error_of(case))
    for element in (suite, suites):
        element.set("tests", str(len(suite)))
        for kind in ("failure", "error"):
            element.set(f"{kind}s", str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("skipped", "0")
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _tests(gate: GateResult) -> Iterable[tuple[str, str, str]]:
    """(name, status, reason) of each test that a gate is."""
    if gate.aggregate != "worst" or not gate.cases:
        yield gate.name, gate.status, gate.reason
        return
    quantity = EVALUATED[gate.figure]
    for each in gate.cases:
        value = "goal not reached" if each.value is None else f"observed {quantity.with_unit(each.value)}"
        reason = value if each.problem is None else each.problem
        yield each.case_id, each.status, f"inconclusive: {reason}" if each.status == "inconclusive" else reason


def _add_test(suite: ElementTree.Element, classname: str, name: str, status: str, reason: str) -> None:
    test = ElementTree.SubElement(suite, "testcase", classname=_xml(classname), name=_xml(name), time="0")
    if status != "pass":
        kind = "error" if status == "error" else "failure"
        cause = {"fail": "gate", "inconclusive": "inconclusive"}.get(status, "case")
        problem = ElementTree.SubElement(test, kind, message=_xml(reason), type=cause)
        problem.text = _xml(reason)


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", harmless(in_one_line(text)))


def alerts(report: Evaluation) -> list[str]:
    """A line for each failed gate that GitHub shows at the job: `::error title=...::...`."""
    return [f"::error title={_command(gate.name, ':,')}::{_command(gate.reason)}" for gate in report.failed_gates]


def _command(text: str, more: str = "") -> str:
    text = harmless(in_one_line(text))
    for sign in "%" + more:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
