"""A sample of `make crash`: a few disturbances of each kind, through the same functions."""

import random

import crash
import h5py
import pytest
from test_kill import write_clips


@pytest.mark.slow
def test_a_few_disturbances(tmp_path):
    tally = crash.crash(tmp_path, kills=4, seed=0, clips={"audio": 24})
    assert tally.total == 4
    assert sum(tally.resumed.values()) == 4
    assert {kind for kind, _ in tally.disturbances} >= {"kill", "full disk"}
    lines = list(crash.table(tally))
    assert lines[-1].startswith("4 disturbances in ")


def test_a_torn_store_and_a_torn_part_are_seen(tmp_path):
    path = tmp_path / "store.h5"
    write_clips(str(path))
    done = crash.clips_done(path)
    assert len(done) == 90
    parts = crash.parts_folder(path)
    parts.mkdir()
    whole = path.read_bytes()
    (parts / "part-1-a.h5").write_bytes(whole)
    assert crash.clips_done(path) == done
    (parts / "part-2-b.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(crash.ViolationError, match=r"part-2-b\.h5 is torn"):
        crash.clips_done(path)
    with h5py.File(path, "r+") as file:
        del file["values"]
    with pytest.raises(crash.ViolationError, match=r"store\.h5 is faulty: .*do not match their digest"):
        crash.clips_done(path)
    path.write_bytes(whole[:100])
    with pytest.raises(crash.ViolationError, match=r"store\.h5 is faulty: .*was damaged"):
        crash.clips_done(path)


def test_the_shares_of_a_hundred():
    assert sum(crash.KINDS.values()) == sum(crash.EVENTS.values()) == 100
    assert set(crash.CODES) == set(crash.KINDS)
    drawn = crash.draw(random.Random(0), 100)
    assert {kind: drawn.count(kind) for kind in crash.KINDS} == crash.KINDS
    assert {"kill", "full disk"} <= set(crash.draw(random.Random(0), 4))
