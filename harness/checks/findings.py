"""What an examination of the engine finds: a difference, where it is, and whether it is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    ok: bool | None
    """None: it does not apply, or could not be made; `detail` says why."""
    detail: str
    difference: float | None = None
    """The largest that was found."""
    tolerance: float | None = None
    where: str = ""
    """The tensor, or the step, with the largest difference."""

    @property
    def mark(self) -> str:
        """`ok`, `FAILED`, or `??` where there was nothing to see."""
        return {True: "ok", False: "FAILED", None: "??"}[self.ok]

    @property
    def line(self) -> str:
        """The finding in one line."""
        if self.difference is None:
            return f"{self.mark:6}  {self.check}: {self.detail}"
        at = f" at {self.where}" if self.where else ""
        found = f"largest difference {self.difference:.2g}{at}, allowed {self.tolerance:g}"
        return f"{self.mark:6}  {self.check}: {self.detail}; {found}"


def judged(check: str, detail: str, found: tuple[float, str], tolerance: float) -> Finding:
    """The finding of a difference and where it was."""
    difference, where = found
    return Finding(check, difference <= tolerance, detail, difference, tolerance, where if difference else "")


def has_failed(findings: list[Finding]) -> bool:
    """Whether any check did."""
    return any(finding.ok is False for finding in findings)


def report(findings: list[Finding]) -> dict[str, Any]:
    """The findings as values that JSON can hold."""
    checks = [asdict(finding) for finding in findings]
    for values in checks:
        if values["difference"] is not None and not values["difference"] < float("inf"):
            values["difference"] = str(values["difference"])
    return {"passed": not has_failed(findings), "checks": checks}


def largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference of any entry, and the name of its tensor; infinite if names differ or it is NaN."""
    if odd := found.keys() ^ expected.keys():
        return float("inf"), min(odd)
    worst = 0.0, ""
    for name, tensor in expected.items():
        difference = float((found[name].double() - tensor.double()).abs().max()) if tensor.numel() else 0.0
        difference = difference if difference == difference else float("inf")  # NaN
        worst = max(worst, (difference, name))
    return worst
