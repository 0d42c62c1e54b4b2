"""Files that are not as they were written: noticed, made again alone, and never mixed with others."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.errors import UserError
from minos_ray.pipeline import run_stage
from minos_ray.store.columns import table
from minos_ray.store.run import Artefact, Manifest, Run
from tests import runs

INPUTS = {"config": {"x": 1}}
NAMES = [f"{number:02}" for number in range(6)]
TEXTS = pa.table({"text": [f"Step 1: {n} + 4 = {n + 4} apples" for n in range(2000)], "n": list(range(2000))})


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    """Complete, with six parts."""
    made = Run(str(tmp_path / "run")).artefact("candidates")
    made.begin(INPUTS)
    for name in NAMES:
        made.write_part(name, TEXTS, {"tokens": 1}, [name])
    made.complete({"rows": 12_000})
    return made


def part(artefact: Artefact, name: str) -> Path:
    return Path(artefact.path) / f"part-{name}.parquet"


@pytest.mark.parametrize("length", [0, 1, 4, 2000, -1, -4, -8, -9, -200, -2000])
def test_a_part_cut_anywhere_is_redone_alone(artefact: Artefact, length: int) -> None:
    """Also in an artefact that is complete: the line says what to delete."""
    path, before = part(artefact, "03"), artefact.manifest()
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(UserError, match=r"part-03\.parquet is torn; delete .*manifest\.json and it, and run its stage"):
        artefact.read()
    (Path(artefact.path) / "manifest.json").unlink()
    artefact.begin(INPUTS)
    assert artefact.part_names() == [name for name in NAMES if name != "03"]
    artefact.write_part("03", TEXTS, {"tokens": 1}, ["03"])
    again = artefact.complete({"rows": 12_000})
    assert before is not None and again.model_copy(update={"created": before.created}) == before
    assert artefact.read().num_rows == 12_000
    assert path.read_bytes() == content


@settings(max_examples=60)
@given(st.integers(min_value=0) | st.integers(-2000, -1), st.integers(0, 7))
def test_a_flipped_bit_gives_no_other_rows_units_or_numbers(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    """Half of the bits are those of the footer. Without checksums of pages four in five of the others would be read as
    other rows; see minos_ray/store/filesystem.py."""
    units, stats = [f"unit {number}" for number in range(20)], {"tokens": 12.5, "refused": 3}
    artefact = Run(str(tmp_path_factory.mktemp("run"))).artefact("candidates")
    artefact.begin(INPUTS)
    artefact.write_part("a", TEXTS, stats, units)
    path = part(artefact, "a")
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        if artefact.part_names():
            assert artefact.part_footer("a") == (units, 2000, stats)
            assert artefact.read(partial=True).equals(TEXTS)
    except UserError as error:
        assert "part-a.parquet is torn" in str(error)


def test_a_part_that_is_gone_is_noticed_and_redone_alone(artefact: Artefact) -> None:
    before = artefact.manifest()
    part(artefact, "04").unlink()
    for read in (artefact.read, lambda: list(artefact.parts())):
        with pytest.raises(UserError, match=r"has 5 parts where its manifest counts 6; delete .*manifest\.json"):
            read()
    artefact.run.delete(artefact.manifest_name)
    artefact.begin(INPUTS)
    assert artefact.part_names() == [name for name in NAMES if name != "04"]
    artefact.write_part("04", TEXTS, {"tokens": 1}, ["04"])
    again = artefact.complete({"rows": 12_000})
    assert before is not None and again.model_copy(update={"created": before.created}) == before
    assert artefact.read().num_rows == 12_000


def test_a_part_that_came_after_completion_is_noticed(artefact: Artefact) -> None:
    """From a process that was given up: its rows are there already."""
    artefact.write_part("late", TEXTS)
    with pytest.raises(UserError, match="has 7 parts where its manifest counts 6"):
        artefact.read()


def other_manifest(content: bytes) -> bytes:
    values = json.loads(content)
    return json.dumps(values | {"artefact": "labels"}).encode()


HARMS = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:40],
    "cut at the end": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "another's": other_manifest,
    "a list": lambda content: b"[1, 2]",
    "of another program": lambda content: b'{"format": "spark", "version": 3}',
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_manifest_is_none_and_rows_are_kept(artefact: Artefact, harm: str) -> None:
    before = artefact.manifest()
    path = Path(artefact.path) / "manifest.json"
    path.write_bytes(HARMS[harm](path.read_bytes()))
    assert artefact.manifest() is None
    artefact.begin(INPUTS)
    assert artefact.part_names() == NAMES
    again = artefact.complete({"rows": 12_000})
    assert before is not None and again.model_copy(update={"created": before.created}) == before


@pytest.mark.parametrize("harm", ["empty", "cut", "zeros", "a list", "of another program"])
def test_rows_of_a_harmed_beginning_are_redone_never_mixed(artefact: Artefact, harm: str) -> None:
    """Nobody knows any more what they were made from."""
    (Path(artefact.path) / "manifest.json").unlink()
    path = Path(artefact.path) / "begun.json"
    path.write_bytes(HARMS[harm](path.read_bytes()))
    artefact.begin({"config": {"x": 2}})
    assert artefact.part_names() == []


def test_a_clearing_that_is_killed_leaves_nothing_that_looks_complete(
    artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first deletion alone makes the artefact incomplete."""

    class Killed(Exception):
        """The process ends here."""

    delete, deleted = Run.delete, list[str]()

    def then_killed(run: Run, name: str) -> None:
        delete(run, name)
        deleted.append(name)
        raise Killed

    monkeypatch.setattr(Run, "delete", then_killed)
    with pytest.raises(Killed):
        artefact.begin({"config": {"x": 2}})
    assert len(deleted) == 1 and artefact.manifest() is None


def test_what_killed_writers_left_goes_at_completion(artefact: Artefact) -> None:
    folder, single = Path(artefact.path), artefact.run.artefact("evaluation.json")
    (folder / "part-00.parquet.123.tmp").write_bytes(b"PAR1")
    single.begin(INPUTS)
    beside = [Path(artefact.run.path) / name for name in ("evaluation.json.1.tmp", "other.json.2.tmp")]
    for path in beside:
        path.write_bytes(b"{")
    artefact.begin(INPUTS)
    assert artefact.part_names() == NAMES
    artefact.complete({"rows": 12_000})
    assert not list(folder.glob("*.tmp"))
    single.complete({})
    assert [path.exists() for path in beside] == [False, True]


def test_a_stage_makes_a_torn_part_again_and_no_other(local_ray: None, tmp_path: Path) -> None:
    """Labels, on real actors: the same rows, the manifest as before."""
    run = runs.make_run(tmp_path / "run", [2] * 12)
    candidates = run.artefact("candidates").read().to_pylist()
    artefact = run.artefact("candidates")
    artefact.begin({"import": "parts"})
    for number in range(4):
        artefact.write_part(str(number), table("candidates", candidates[number::4]))
    artefact.complete({"rows": len(candidates)})
    run.delete("labels")
    config = runs.config(run)
    first, labels = run_stage(config, run, "label"), run.artefact("labels")
    rows, names = labels.read().sort_by("candidate_id"), labels.part_names()
    assert len(names) > 1
    written = {name: part(labels, name).stat().st_mtime_ns for name in names}
    path = part(labels, names[0])
    path.write_bytes(path.read_bytes()[:-30])
    (Path(labels.path) / "manifest.json").write_bytes(b'{"artefact": "lab')
    again = run_stage(config, run, "label")
    assert labels.read().sort_by("candidate_id") == rows
    assert comparable(again) == comparable(first)
    changed = [name for name in names if part(labels, name).stat().st_mtime_ns != written[name]]
    assert labels.part_names() == names and changed == names[:1]


def comparable(manifest: Manifest) -> dict[str, object]:
    """All but when and how fast."""
    return manifest.model_dump(exclude={"created", "details"})


def test_an_artefact_written_before_parts_were_counted_is_read(artefact: Artefact) -> None:
    path = Path(artefact.path) / "manifest.json"
    values = json.loads(path.read_bytes())
    del values["parts"]
    path.write_text(json.dumps(values))
    assert np.array_equal(artefact.read(["n"])["n"].to_numpy()[:2000], np.arange(2000))


def test_a_part_from_before_its_footer_had_a_checksum_is_read(artefact: Artefact) -> None:
    notes = {"minos_stats": '{"tokens": 2}', "minos_units": '["u"]'}
    pq.write_table(TEXTS.replace_schema_metadata(notes), part(artefact, "03"), compression="zstd")
    assert artefact.part_footer("03") == (["u"], 2000, {"tokens": 2})
    assert artefact.read_part("03").equals(TEXTS)


def test_a_footer_longer_than_what_is_asked_for_first_is_read(artefact: Artefact) -> None:
    units = [f"a unit with a long name, number {number}" for number in range(5000)]
    artefact.write_part("03", TEXTS, {"tokens": 2}, units)
    assert artefact.part_footer("03") == (units, 2000, {"tokens": 2})
    path = part(artefact, "03")
    content = bytearray(path.read_bytes())
    content[-100_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="torn"):
        artefact.part_footer("03")
