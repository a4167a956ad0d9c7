"""Where a result may go, and what is neither written into nor replaced."""

from pathlib import Path

import pytest

from compressor.config.runtime import Runtime
from compressor.errors import InputError
from compressor.job.destination import check_dest, is_result, work_folder
from compressor.writing.record import RECORD


@pytest.fixture
def judged(tmp_path):
    """The function that judges a DEST of a source beside it, both by their names."""
    (tmp_path / "source").mkdir()

    def judge(dest: str, source: str = "source", work: str | None = None, **given) -> None:
        work_dir = None if work is None else tmp_path / work
        check_dest(tmp_path / source, tmp_path / dest, Runtime(work_dir=work_dir, **given))

    return judge


@pytest.fixture
def refusal(judged):
    """The function that gives the sentence in which it is refused."""

    def refused(*given, **named) -> str:
        with pytest.raises(InputError) as caught:
            judged(*given, **named)
        return str(caught.value)

    return refused


@pytest.fixture
def result(tmp_path):
    """The function that makes a folder of what a run has written."""

    def made(name: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / RECORD).touch()
        return tmp_path / name

    return made


# -- the source -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dest",
    ["source/out", "source/a/b/out", "link/out", "source/../source/out", "other/../source/a"],
)
def test_nothing_is_written_into_the_source(tmp_path, refusal, dest):
    (tmp_path / "link").symlink_to(tmp_path / "source")
    (tmp_path / "other").mkdir()
    assert refusal(dest) == (
        f"DEST {tmp_path / dest} lies in the source {tmp_path / 'source'}, which is left as it is; "
        "choose a folder outside."
    )


def test_the_source_is_where_its_link_leads(tmp_path, refusal):
    (tmp_path / "link").symlink_to(tmp_path / "source")
    assert f"lies in the source {tmp_path / 'source'}" in refusal("source/out", source="link")


def test_names_are_compared_whole(judged):
    for dest in ("source2", "source.small", "sourc", "other/source"):
        judged(dest)


@pytest.mark.parametrize("dest", ["source", "models", "models/deep"])
def test_what_holds_the_source_is_not_replaced(tmp_path, refusal, dest):
    source = "source" if dest == "source" else "models/deep/m"
    (tmp_path / source).mkdir(parents=True, exist_ok=True)
    (tmp_path / dest / RECORD).touch()
    assert refusal(dest, source) == refusal(dest, source, overwrite=True)
    assert refusal(dest, source) == (
        f"{tmp_path / dest} holds the source {tmp_path / source}, and the job makes or removes that "
        "folder; choose another DEST."
    )


@pytest.mark.parametrize("end", [".partial", ".work", ".old", ".rejected", ".rejected.old"])
def test_nor_does_a_folder_that_a_job_makes_or_removes_hold_it(tmp_path, refusal, result, end):
    own = result(f"m{end}/inner").parent
    (tmp_path / "link").symlink_to(own)
    for source in (f"m{end}", f"m{end}/inner", "link", "link/inner"):
        told = refusal("m", source)
        assert told == refusal("m", source, overwrite=True) == refusal("m", source, resume=True)
        assert told.startswith(f"{own} holds the source {(tmp_path / source).resolve()}, and")


def test_nor_does_the_folder_that_the_job_has_in_the_work_dir(tmp_path, judged, refusal, result):
    result("m.work")
    judged("m", "m.work", work="work")  # which is nothing to this job
    work = work_folder(tmp_path / "m", tmp_path / "work")
    result(f"work/{work.name}/inner")
    for source in (f"work/{work.name}", f"work/{work.name}/inner"):
        told = refusal("m", source, work="work")
        assert told.startswith(f"{work} holds the source {tmp_path / source}, and the job")
    judged("m", f"work/{work.name}", work="elsewhere")


@pytest.mark.parametrize("source", ["m.partial2", "m.olds", "n.partial", "a/m.partial"])
def test_other_names_beside_a_result_are_sources(judged, result, source):
    result(source)
    judged("m", source)


def test_a_link_beside_a_result_leads_to_no_source(tmp_path, refusal):
    (tmp_path / "m.partial").symlink_to(tmp_path / "source")
    assert refusal("m").startswith(f"{tmp_path / 'm.partial'} holds the source {tmp_path}/source,")


# -- other results, and what no run has written -----------------------------------------------------


@pytest.mark.parametrize("dest", ["small/out", "small/a/b/out", "link/out"])
def test_nothing_is_written_into_another_result(tmp_path, refusal, result, dest):
    small = result("small")
    (tmp_path / "link").symlink_to(small)
    assert refusal(dest) == refusal(dest, overwrite=True)
    assert refusal(dest) == (
        f"DEST {tmp_path / dest} lies in {small}, which is a result itself (compression.json is in it); "
        "choose a folder outside."
    )


def test_a_result_may_stand_beside_another_and_be_made_of_one(judged, result):
    result("small")
    judged("out")
    judged("smaller", source="small")


def test_a_former_result_goes_with_overwrite_alone(tmp_path, judged, refusal, result):
    result("out")
    result("several/keep-0.8")
    result("several/keep-0.6.rejected")
    (tmp_path / "empty").mkdir()
    for dest in ("out", "several", "empty"):
        message = f"{tmp_path / dest} exists; choose another DEST or pass --overwrite."
        assert refusal(dest) == message
        judged(dest, overwrite=True)


def test_so_does_a_rejected_one(tmp_path, judged, refusal, result):
    result("out.rejected")
    assert refusal("out").startswith(f"{tmp_path / 'out.rejected'} exists; choose another DEST")
    judged("out", overwrite=True)


@pytest.mark.parametrize("name", ["out", "out.rejected"])
def test_what_no_run_has_written_is_not_replaced(tmp_path, refusal, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").touch()
    told = refusal("out", overwrite=True)
    assert told.startswith(f"{tmp_path / name} holds no compression.json, nor is it a folder of")
    assert told.endswith("choose another DEST, or remove it.")
    assert (tmp_path / name / "precious").exists()


@pytest.mark.parametrize("name", ["out", "out.rejected"])
def test_a_file_is_not_replaced(tmp_path, refusal, name):
    (tmp_path / name).write_text("precious")
    assert f"{tmp_path / name} exists" in refusal("out")
    assert refusal("out", overwrite=True) == (
        f"{tmp_path / name} is not a folder and is not replaced; choose another DEST."
    )


@pytest.mark.parametrize("name", ["out", "out.rejected"])
def test_a_link_is_not_replaced_wherever_it_leads(tmp_path, refusal, result, name):
    result("small")
    (tmp_path / "file").touch()
    for target in ("small", "file", "missing", name):
        (tmp_path / name).symlink_to(tmp_path / target)
        told = refusal("out", overwrite=True)
        assert told.startswith(f"{tmp_path / name} is not a folder and is not replaced")
        (tmp_path / name).unlink()


def test_a_link_that_leads_nowhere_is_in_the_way(tmp_path, refusal):
    (tmp_path / "out").symlink_to(tmp_path / "missing")
    assert "is not a folder and is not replaced" in refusal("out")


# -- names and parents ------------------------------------------------------------------------------


@pytest.mark.parametrize("dest", ["/", "", "..", "a/.."])
def test_a_result_has_a_name_of_its_own(tmp_path, dest):
    for overwrite in (False, True):
        with pytest.raises(InputError) as caught:
            check_dest(tmp_path, Path(dest), Runtime(overwrite=overwrite))
        told = f"DEST is {str(Path(dest))!r}, which names no new folder; give one, such as ./small."
        assert str(caught.value) == told


def test_missing_parents_are_fine_and_not_made_yet(tmp_path, judged):
    judged("a/b/c/out", work="d/e")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("dest", ["file/out", "file/a/b/out", "a/../file/out", "link/out"])
def test_a_parent_is_no_file(tmp_path, refusal, dest):
    (tmp_path / "file").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    parent = tmp_path / dest.removesuffix("/out").removesuffix("/a/b")
    assert refusal(dest) == f"DEST would lie in {parent}, which is a file; choose another."


@pytest.mark.parametrize("target", ["missing", "link", "file/below"])
@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
def test_a_parent_is_no_link_that_leads_nowhere(tmp_path, refusal, target, below):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / target)
    leads = f"would lie in {tmp_path / 'link'}, which is a link that leads nowhere; choose another."
    assert refusal(f"link{below}/out") == f"DEST {leads}"
    assert refusal("out", work=f"link{below}") == f"--work-dir {leads}"


def test_a_relative_dest_is_where_one_stands(tmp_path, monkeypatch, judged):
    monkeypatch.chdir(tmp_path)
    check_dest(Path("source"), Path("small"), Runtime())
    check_dest(Path("source"), Path("a/small"), Runtime())
    monkeypatch.chdir(tmp_path / "source")
    for source in (Path("."), tmp_path / "source", Path("../source")):
        check_dest(source, Path("../small"), Runtime())
        with pytest.raises(InputError, match=f"DEST small lies in the source {tmp_path}/source,"):
            check_dest(source, Path("small"), Runtime())


# -- the work folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["source", "source/work", "source/a/b", "link", "link/work"])
def test_work_is_not_done_in_the_source(tmp_path, refusal, work):
    (tmp_path / "link").symlink_to(tmp_path / "source")
    told = refusal("out", work=work)
    assert told.startswith(
        f"--work-dir {tmp_path / work} lies in the source {tmp_path / 'source'},"
    )
    assert told.endswith("choose a folder outside.")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("work", ["out", "out/work", "out/a/b", "a/../out/b"])
def test_nor_in_what_is_to_be_made(tmp_path, refusal, result, work, exists):
    (tmp_path / "a").mkdir()
    if exists:
        result("out")
    told = refusal("out", work=work, overwrite=exists)
    assert told == (
        f"--work-dir {tmp_path / work} lies in the job's own folder {tmp_path / 'out'}, which it makes "
        "or removes; choose a folder outside."
    )


@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
@pytest.mark.parametrize("end", [".partial", ".old", ".rejected", ".rejected.old"])
def test_nor_in_another_folder_of_the_job(tmp_path, refusal, end, below):
    told = refusal("out", work=f"out{end}{below}")
    own = f"lies in the job's own folder {tmp_path / 'out'}{end}, which it makes or removes;"
    assert told.startswith(f"--work-dir {tmp_path / 'out'}{end}{below} {own}")


@pytest.mark.parametrize("work", ["small", "small/a/b", "link/a"])
def test_nor_in_another_result(tmp_path, refusal, result, work):
    small = result("small")
    (tmp_path / "link").symlink_to(small)
    assert refusal("out", work=work).startswith(
        f"--work-dir {tmp_path / work} lies in {small}, which is a result itself"
    )


@pytest.mark.parametrize("work", ["file", "file/work", "file/a/b"])
def test_nor_in_a_file(tmp_path, refusal, work):
    (tmp_path / "file").touch()
    assert refusal("out", work=work) == (
        f"--work-dir would lie in {tmp_path / 'file'}, which is a file; choose another."
    )


@pytest.mark.parametrize("work", ["work", "work/below", "out2", "source2", ".", "new/deep"])
def test_work_is_done_in_any_other_folder(tmp_path, judged, work):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "precious").touch()
    judged("out", work=work)
    judged("work2/out", work=work)


# -- what counts as a result ------------------------------------------------------------------------


def test_an_empty_folder_is_replaced_as_a_result_is(tmp_path):
    assert is_result(tmp_path)


def test_one_result(tmp_path, result):
    assert is_result(result("small"))
    (tmp_path / "small" / "model.safetensors").touch()
    assert is_result(tmp_path / "small")


def test_several_results(tmp_path, result):
    for name in ("keep-0.8", "keep-0.6"):
        result(f"several/{name}")
    (tmp_path / "several" / ".DS_Store").touch()
    assert is_result(tmp_path / "several")


@pytest.mark.parametrize("other", ["precious/x", "x", ".git/config"])
def test_a_result_among_other_things_makes_none_of_them(tmp_path, refusal, result, other):
    result("models/small")
    (tmp_path / "models" / other).parent.mkdir(exist_ok=True)
    (tmp_path / "models" / other).touch()
    assert not is_result(tmp_path / "models")
    assert "not the result of a former run" in refusal("models", overwrite=True)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "compression.json.bak", ".hidden", "a/model.safetensors"]
)
def test_other_files_make_no_result(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert not is_result(tmp_path)


def test_an_empty_folder_within_makes_no_result(tmp_path):
    (tmp_path / "a").mkdir()
    assert not is_result(tmp_path)


def test_a_result_far_below_makes_none(tmp_path, result):
    result("a/b")
    assert is_result(tmp_path / "a") and not is_result(tmp_path)
