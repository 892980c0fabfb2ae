"""The chain of a run's statements: every way to take a link out, put another in, or exchange two (F21)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StorageError
from harness.signing import digests
from harness.signing.chain import links, verify
from harness.signing.keys import Key
from harness.signing.provenance import Verification, open_envelope, resign
from tests import sealed

GOLDEN = Path(__file__).parents[1] / "fixtures" / "fingerprint_v1"
KEY, OTHER = Key(b"k" * 32), Key(b"o" * 32)
GOLDEN_KEY = Key(bytes(range(32)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return sealed.finished(tmp_path / "run", KEY)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    sealed.interrupted(tmp_path / "stopped", KEY)
    return tmp_path / "stopped"


def problems(verdict: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in verdict.checks if not check.ok}


def step(run: Path, number: int) -> Path:
    return run / "chain" / f"step-{number:07d}.json"


# What is ok


def test_the_end_is_followed_back_to_the_start(run: Path) -> None:
    verdict = verify(run, [KEY])
    assert verdict.exit_code == 0, problems(verdict)
    details = {check.name: check.detail for check in verdict.checks}
    assert details["chain"] == "the end follows from the start through 3 checkpoints; 1 checkpoint abandoned"
    assert details["end files"] == "6 as signed"


def test_every_statement_is_told_in_the_order_of_the_chain(run: Path) -> None:
    told = [(link.kind, link.step, link.attempt, link.key, link.ok) for link in links(run, [KEY])]
    assert told == [
        ("start", None, None, KEY.keyid, True), ("checkpoint", 10, 1, KEY.keyid, True),
        ("checkpoint", 15, 2, KEY.keyid, True), ("checkpoint", 20, 1, KEY.keyid, True),
        ("checkpoint", 25, 2, KEY.keyid, True), ("end", None, 2, KEY.keyid, True),
    ]  # fmt: skip
    abandoned = [link.step for link in links(run, [KEY]) if link.detail.startswith("abandoned")]
    assert abandoned == [20]
    assert links(run, [KEY])[1].time == "2026-01-02T03:05:00+00:00"


def test_a_run_without_checkpoints_verifies_as_ever(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sealed.end(run, sealed.start(run, KEY), KEY)
    verdict = verify(run, [KEY])
    assert verdict.exit_code == 0
    assert "the end follows from the start" in [check.detail for check in verdict.checks]
    assert [link.kind for link in links(run, [KEY])] == ["start", "end"]


def with_weights(interrupted: Path, to: Path) -> Path:
    """A copy of the golden run that was stopped, with what stands for the weights of its checkpoints."""
    shutil.copytree(interrupted, to)
    for folder in (to / "checkpoints").iterdir():
        for name in ("best", "optimizer", "trained"):
            file = f"{name}.safetensors"
            (folder / file).write_bytes(f"{file} {int(folder.name.removeprefix('step-'))}\n".encode())
    return to


def test_golden_chain_of_format_1_verifies_for_ever(tmp_path: Path) -> None:
    verdict = verify(GOLDEN / "chain", [GOLDEN_KEY])
    assert verdict.exit_code == 0, problems(verdict)
    assert [link.step for link in links(GOLDEN / "chain", [GOLDEN_KEY])] == [None, 10, 15, 20, 25, None]
    assert verdict.envelopes["end"].attestation_id == (
        "harness1:e1c75eb5360693c9f71a0c3eafdbf32bea55b87c5accd52c1f62f7c8473eb997"
    )
    run = with_weights(GOLDEN / "interrupted", tmp_path / "interrupted")
    stopped = verify(run, [GOLDEN_KEY])
    assert (stopped.exit_code, list(problems(stopped))) == (3, ["end.envelope.json"])
    newest = run / "checkpoints/step-0000020"
    assert verify(newest, [GOLDEN_KEY]).exit_code == 0
    assert open_envelope(newest / "checkpoint.envelope.json", [GOLDEN_KEY], "checkpoint").predicate


def test_the_golden_chain_is_sealed_to_the_same_bytes_today(tmp_path: Path) -> None:
    sealed.finished(tmp_path / "chain", GOLDEN_KEY)
    for path in (tmp_path / "chain").rglob("*.json"):
        assert path.read_bytes() == (GOLDEN / path.relative_to(tmp_path)).read_bytes()


# What is not


def _exchange(run: Path) -> None:
    first, second = step(run, 10).read_bytes(), step(run, 15).read_bytes()
    step(run, 10).write_bytes(second)
    step(run, 15).write_bytes(first)


def _edit(run: Path) -> None:
    outer = json.loads(step(run, 15).read_text())
    payload = json.loads(digests.decode(outer["payload"]))
    payload["predicate"]["step"] = 16
    outer["payload"] = digests.encode(digests.canonical(payload))
    step(run, 15).write_bytes(digests.canonical(outer))


def _foreign(run: Path) -> None:
    """A link of another run, signed with the same key, in the place of this one's."""
    other = run.parent / "other"
    sealed.checkpoint(other, 15, sealed.start(other, KEY, runId="lora-s2-ab12"), KEY, 2, runId="lora-s2-ab12")
    shutil.copy(step(other, 15), step(run, 15))


def _no_signature(run: Path) -> None:
    outer = json.loads(step(run, 15).read_text())
    step(run, 15).write_bytes(digests.canonical({**outer, "signatures": []}))


def _newer(run: Path) -> None:
    place = run.parent / "newer"
    sealed.start(place, KEY)
    outer = json.loads((place / "start.envelope.json").read_text())
    assert outer["signatures"]
    step(run, 15).write_text(json.dumps(outer))


def _link_folder(run: Path) -> None:
    (run / "chain").rename(run.parent / "chain")
    (run / "chain").symlink_to(run.parent / "chain")


def _pipe(run: Path) -> None:
    step(run, 15).unlink()
    os.mkfifo(step(run, 15))


def _symlink(run: Path) -> None:
    step(run, 15).rename(run.parent / "link.json")
    step(run, 15).symlink_to(run.parent / "link.json")


EDITS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda run: step(run, 15).unlink(), "chain/step-0000025.json", "the one before it is not here"),
    "last missing": (lambda run: step(run, 25).unlink(), "chain", "the end statement does not follow"),
    "all missing": (lambda run: shutil.rmtree(run / "chain"), "chain", "the end statement does not follow"),
    "abandoned missing": (lambda run: step(run, 20).unlink(), "chain/step-0000020.json", "missing"),
    "edited": (_edit, "chain/step-0000015.json", "changed: sha256"),
    "reordered": (_exchange, "chain/step-0000010.json", "changed: sha256"),
    "renamed": (lambda run: step(run, 15).rename(step(run, 16)), "chain/step-0000016.json", "not among"),
    "moved": (lambda run: step(run, 15).rename(run / "step-0000015.json"), "step-0000015.json", "not among"),
    "copied": (lambda run: shutil.copy(step(run, 15), step(run, 16)), "chain/step-0000016.json", "not among"),
    "foreign": (_foreign, "chain/step-0000015.json", "changed: sha256"),
    "not signed": (_no_signature, "chain/step-0000015.json", "changed: sha256"),
    "of another kind": (_newer, "chain/step-0000015.json", "changed: sha256"),
    "linked folder": (_link_folder, "chain", "not among"),
    "linked": (_symlink, "chain/step-0000015.json", "not a regular file any more"),
    "piped": (_pipe, "chain/step-0000015.json", "not a regular file any more"),
    "emptied": (lambda run: step(run, 15).write_text(""), "chain/step-0000015.json", "changed: sha256"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_chain_that_was_edited_is_tampered(run: Path, edit: str) -> None:
    change, name, detail = EDITS[edit]
    change(run)
    verdict = verify(run, [KEY])
    assert verdict.exit_code == 1
    assert detail in problems(verdict)[name]
    assert any(not check.ok for check in verdict.checks if check.name.startswith("chain"))


@pytest.mark.parametrize(
    ("edit", "detail"),
    [
        (_exchange, "it is the statement of step 15: exchanged or renamed"),
        (_foreign, "runId was 'lora-s1-ab12' at the start and is 'lora-s2-ab12' at step 15"),
        (_edit, "bad MAC"),
        (lambda run: step(run, 15).rename(step(run, 16)), "it is the statement of step 15"),
        (lambda run: step(run, 10).unlink(), "the one before it is not here"),
    ],
)
def test_the_links_of_an_unfinished_run_are_checked_too(run: Path, edit: Callable[[Path], object], detail: str) -> None:
    """No end statement covers them yet."""
    (run / "end.envelope.json").unlink()
    assert verify(run, [KEY]).exit_code == 3
    edit(run)
    verdict = verify(run, [KEY])
    assert verdict.exit_code == 1
    assert any(text.startswith(detail) or detail in text for text in problems(verdict).values())
    assert any(link.ok is False for link in links(run, [KEY]))


@pytest.mark.parametrize(
    ("number", "claims", "detail"),
    [
        (20, {"step": 10}, "it is the statement of step 10"),
        (20, {"step": "20"}, "it is the statement of step '20'"),
        (20, {"step": True}, "it is the statement of step True"),
        (5, {}, "step 5 cannot follow step 10"),
        (20, {"attempt": 0}, "attempt 0 cannot follow attempt 1"),
        (20, {"seeds": ["2"]}, "seeds was ['1'] at the start and is ['2']"),
        (20, {"baseModel": None}, "baseModel was"),
        (20, {"prev": None}, "it does not follow from this start statement"),
        (20, {"prev": ["x"]}, "it does not follow from this start statement"),
    ],
)
def test_links_that_contradict_each_other(tmp_path: Path, number: int, claims: dict[str, Any], detail: str) -> None:
    run = tmp_path / "run"
    first = sealed.checkpoint(run, 10, sealed.start(run, KEY), KEY)
    sealed.checkpoint(run, number, first, KEY, **claims)
    told = [check.detail for check in verify(run, [KEY]).checks if check.ok is False]
    assert len(told) == 1
    assert told[0].startswith(detail)


def test_a_checkpoint_that_was_made_again_is_a_second_branch(tmp_path: Path) -> None:
    """The first was corrupt: its statement stays as `step-0000020.json`, the one that counts has a number."""
    run = tmp_path / "run"
    first = sealed.checkpoint(run, 10, sealed.start(run, KEY), KEY)
    sealed.checkpoint(run, 20, first, KEY)
    step(run, 20).rename(run / "chain/step-0000020-2.json")
    shutil.rmtree(run / "checkpoints/step-0000020")
    sealed.end(run, sealed.checkpoint(run, 20, first, KEY, 2), KEY, 2)
    assert verify(run, [KEY]).exit_code == 0
    assert [link.detail[:9] for link in links(run, [KEY]) if link.step == 20] == ["signed wi", "abandoned"]


def test_unsigned_chains_cannot_be_told_and_edits_of_them_show(tmp_path: Path) -> None:
    run = sealed.finished(tmp_path / "run", None)
    verdict = verify(run, [KEY])
    assert verdict.exit_code == 3
    assert "not signed" in problems(verdict)["chain/step-0000010.json"]
    step(run, 15).unlink()
    assert verify(run, [KEY]).exit_code == 1


# Keys


def test_links_of_a_key_that_is_not_here_cannot_be_told(run: Path) -> None:
    verdict = verify(run, [OTHER])
    assert verdict.exit_code == 3
    assert all("unknown key" in detail for detail in problems(verdict).values())
    (run / "end.envelope.json").unlink()
    assert verify(run, [OTHER]).exit_code == 3


def test_a_run_that_went_on_under_another_key(tmp_path: Path) -> None:
    """After a rotation: whoever has both keys sees all of it, whoever has the new one only cannot tell."""
    run = tmp_path / "run"
    first = sealed.checkpoint(run, 10, sealed.start(run, KEY), KEY)
    sealed.end(run, sealed.checkpoint(run, 20, first, OTHER, 2), OTHER, 2)
    assert verify(run, [KEY, OTHER]).exit_code == 0
    assert verify(run, [OTHER]).exit_code == verify(run, [KEY]).exit_code == 3


def test_what_an_end_statement_covers_needs_no_second_signature(run: Path) -> None:
    for kind in ("start", "end"):
        assert resign(run / f"{kind}.envelope.json", [KEY], OTHER)
        assert not resign(run / f"{kind}.envelope.json", [KEY], OTHER)
    for known in ([KEY], [OTHER], [KEY, OTHER]):
        verdict = verify(run, known)
        assert verdict.exit_code == 0, problems(verdict)
    assert "covered by a later statement" in links(run, [OTHER])[1].detail
    _edit(run)
    assert verify(run, [OTHER]).exit_code == 1


def test_only_what_verifies_is_signed_again(run: Path, tmp_path: Path) -> None:
    before = step(run, 10).read_bytes()
    with pytest.raises(StorageError, match="cannot be signed again\n  why: unknown key"):
        resign(step(run, 10), [OTHER], OTHER, "checkpoint")
    _edit(run)
    with pytest.raises(StorageError, match="bad MAC"):
        resign(step(run, 15), [KEY, OTHER], OTHER, "checkpoint")
    unsigned = tmp_path / "unsigned"
    sealed.start(unsigned, None)
    with pytest.raises(StorageError, match="not signed"):
        resign(unsigned / "start.envelope.json", [KEY], KEY)
    assert step(run, 10).read_bytes() == before
    assert resign(step(run, 10), [KEY], OTHER, "checkpoint")
    outer, old = json.loads(step(run, 10).read_text()), json.loads(before)
    assert (outer["payload"], outer["signatures"][0]) == (old["payload"], old["signatures"][0])


# One checkpoint


def test_a_single_checkpoint_verifies_in_its_place(stopped: Path) -> None:
    newest = stopped / "checkpoints/step-0000020"
    verdict = verify(newest, [KEY])
    assert verdict.exit_code == 0
    assert "follows from the start of its run" in [check.detail for check in verdict.checks]
    shutil.copytree(newest, stopped.parent / "alone")
    assert verify(stopped.parent / "alone", [KEY]).exit_code == 0
    step(stopped, 10).unlink()
    assert verify(newest, [KEY]).exit_code == 1


def test_a_checkpoint_of_another_run_in_the_place_of_this_ones(stopped: Path) -> None:
    """F21: valid in itself, signed with the right key, and not this run's."""
    other = stopped.parent / "other"
    sealed.checkpoint(other, 20, sealed.start(other, KEY, runId="better"), KEY, runId="better")
    shutil.rmtree(stopped / "checkpoints/step-0000020")
    shutil.copytree(other / "checkpoints/step-0000020", stopped / "checkpoints/step-0000020")
    verdict = verify(stopped / "checkpoints/step-0000020", [KEY])
    assert verdict.exit_code == 1
    assert "runId was 'lora-s1-ab12' at the start and is 'better' at step 20" in problems(verdict).values()


def test_a_checkpoint_under_the_name_of_another_step(stopped: Path) -> None:
    (stopped / "checkpoints/step-0000020").rename(stopped / "checkpoints/step-0000030")
    assert verify(stopped / "checkpoints/step-0000030", [KEY]).exit_code == 1


def test_new_digests_do_not_help_whoever_has_no_key(stopped: Path) -> None:
    """F21: the file is edited and its sha256 in the statement computed anew; the MAC still fails."""
    place = stopped / "checkpoints/step-0000020"
    (place / "progress.json").write_text("{}")
    path = place / "checkpoint.envelope.json"
    outer = json.loads(path.read_text())
    payload = json.loads(digests.decode(outer["payload"]))
    for subject in payload["subject"]:
        subject["digest"]["sha256"] = digests.file_digest(place / subject["name"])
    path.write_bytes(digests.canonical({**outer, "payload": digests.encode(digests.canonical(payload))}))
    verdict = verify(place, [KEY])
    assert (verdict.exit_code, "bad MAC" in problems(verdict)["checkpoint.envelope.json"]) == (1, True)
    assert open_envelope(path, [KEY], "checkpoint").predicate is None


def test_no_flipped_byte_of_a_checkpoint_verifies(stopped: Path) -> None:
    """F21: one bit of each byte of each file, the statement among them."""
    place = stopped / "checkpoints/step-0000020"
    shutil.rmtree(stopped / "chain")
    alone = stopped.parent / "alone"
    shutil.move(place, alone)
    assert verify(alone, [KEY]).exit_code == 0
    for path in sorted(alone.iterdir()):
        original = path.read_bytes()
        for position in range(len(original)):
            changed = bytearray(original)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            assert verify(alone, [KEY]).exit_code == 1, (path.name, position)
        path.write_bytes(original)
    assert verify(alone, [KEY]).exit_code == 0


@pytest.mark.parametrize("name", ["extra", "extra.safetensors", ".hidden", "end.envelope.json"])
def test_a_checkpoint_with_a_file_more_or_less(stopped: Path, name: str) -> None:
    place = stopped / "checkpoints/step-0000020"
    (place / name).write_text("")
    assert verify(place, [KEY]).exit_code == 1
    (place / name).unlink()
    (place / "best.safetensors").unlink()
    assert problems(verify(place, [KEY])) == {"best.safetensors": "missing"}


def test_anything_may_lie_in_a_chain_without_a_traceback(stopped: Path) -> None:
    for number, text in enumerate(("", "[]", "{}", '{"payload": 1}', "[" * 10**5, "\x00")):
        (stopped / "chain" / f"step-{number:07d}.json").write_text(text)
    (stopped / "chain" / "step-9").mkdir()
    (stopped / "chain" / "step-x.json").mkdir()
    assert verify(stopped, [KEY]).exit_code == 1
    assert len(links(stopped, [KEY])) == 10
