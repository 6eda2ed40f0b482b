"""What a killed run leaves behind, and who may go on with it."""

from __future__ import annotations

import pytest

from phoenix_d2.offline.job import ImageOutcome
from phoenix_d2.offline.journal import Journal

FINGERPRINT = {"input": "abc", "options": {"num_iters": 2, "sizes": (1, 2)}}


def outcome(image_id):
    return ImageOutcome(
        image_id, [None, {"bbox": [0.1, 1 / 3, 2, 3]}], [1, 0], None, 0.5, [None, 0.25], [[None, 0.1], [1 / 3, 2.0]]
    )


def failure(image_id):
    return ImageOutcome(image_id, [None], [], "cannot be read", 0.5, [], [])


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "new" / "refined.json")
    journal.begin(FINGERPRINT, resume=False)
    return journal


def write(journal, *image_ids):
    with journal.file(journal.next_file()) as file:
        for image_id in image_ids:
            file.append(outcome(image_id))


def test_it_lies_beside_the_output(journal, tmp_path):
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["refined.json.partial"]


def test_outcomes_of_all_files_come_back_as_they_were(journal):
    write(journal, 1, "two")
    write(journal, 3)
    assert journal.outcomes() == {image_id: outcome(image_id) for image_id in (1, "two", 3)}
    assert journal.next_file() == 2


def test_an_outcome_is_there_as_soon_as_it_is_appended(journal):
    with journal.file(0) as file:
        file.append(outcome(1))
        assert list(journal.outcomes()) == [1]


def test_a_torn_line_is_ignored_and_never_appended_to(journal):
    write(journal, 1, 2)
    path = journal.folder / "1of1-0.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert list(journal.outcomes()) == [1]
    with pytest.raises(FileExistsError):
        journal.file(0)
    write(journal, 2)
    assert journal.outcomes() == {1: outcome(1), 2: outcome(2)}


def test_images_that_could_not_be_read_are_tried_again(journal, tmp_path):
    shard = Journal(tmp_path / "new" / "refined.json", shard=(1, 2))
    shard.begin(FINGERPRINT, resume=False)
    # its file comes behind that of the whole job
    with shard.file(0) as file:
        file.append(failure(1))
    assert journal.begin(FINGERPRINT, resume=False) == {}
    assert journal.outcomes() == {1: failure(1)}
    write(journal, 1)
    assert journal.outcomes() == {1: outcome(1)}


def test_resume_wants_to_be_asked_for(journal):
    write(journal, 1, 2)
    with pytest.raises(ValueError, match=r"refined\.json\.partial holds 2 images .* --resume, or remove"):
        journal.begin(FINGERPRINT, resume=False)
    assert list(journal.begin(FINGERPRINT, resume=True)) == [1, 2]


def test_another_job_cannot_go_on(journal):
    write(journal, 1)
    other = {"input": "abd", "options": {"num_iters": 3, "sizes": (1, 2)}}
    with pytest.raises(ValueError, match=r"refined\.json\.partial belongs to a run with other input, options: repeat"):
        journal.begin(other, resume=True)


def test_shards_share_a_folder_and_protect_their_own(journal, tmp_path):
    shards = [Journal(tmp_path / "new" / "refined.json", shard=(k, 2)) for k in (1, 2)]
    for shard in shards:
        shard.begin(FINGERPRINT, resume=False)
    write(shards[0], 1)
    assert shards[1].next_file() == 0 and shards[0].next_file() == 1
    # what the first has finished is no reason for the second not to start
    shards[1].begin(FINGERPRINT, resume=False)
    write(shards[1], 2)
    with pytest.raises(ValueError, match=r"holds 1 images .* --resume"):
        shards[0].begin(FINGERPRINT, resume=False)
    with pytest.raises(ValueError, match=r"holds 2 images .* --resume"):
        journal.begin(FINGERPRINT, resume=False)
    assert list(journal.begin(FINGERPRINT, resume=True)) == [1, 2]


def test_a_shard_of_another_job_is_found_whenever_it_started(journal, tmp_path):
    other = Journal(tmp_path / "new" / "refined.json", shard=(1, 2))
    other.begin({**FINGERPRINT, "input": "abd"}, resume=False)
    write(other, 1)
    write(journal, 2)
    with pytest.raises(ValueError, match="belongs to a run with other input: repeat"):
        journal.outcomes()


def test_nothing_finished_is_nothing_to_protect(journal):
    journal.begin({"input": "another"}, resume=False)
    write(journal, 1)
    journal.begin({"input": "another"}, resume=True)


def test_remove_leaves_nothing(journal, tmp_path):
    write(journal, 1)
    journal.remove()
    assert not list((tmp_path / "new").iterdir())
