"""Tables as data sets."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import write_image, write_images

from pipeline.core.errors import DataError, PipelineError
from pipeline.data import load_dataset


@pytest.fixture
def load(tmp_path: Path):
    write_images(tmp_path, *(f"pics/{number}.png" for number in range(6)))

    def load(text: str | bytes, name: str = "labels.csv"):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
        return load_dataset(str(tmp_path / name), cache_dir=tmp_path / "cache")

    return load


def test_paths_labels_and_splits_are_taken_as_they_stand(load, tmp_path):
    dataset = load("path,label,split\npics/1.png,dog,train\npics/0.png,cat,Valid\npics/2.png,cat,test\n")
    assert dataset.name == "labels"
    assert dataset.root == tmp_path
    assert dataset.paths == ["pics/1.png", "pics/0.png", "pics/2.png"]
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [1, 0, 0]
    assert dataset.splits.tolist() == ["train", "val", "test"]
    assert dataset.read(1) == (tmp_path / "pics/0.png").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "path,label\npics/0.png,a\npics/1.png,b\n",
        "\ufeffpath,label\r\npics/0.png,a\r\npics/1.png,b\r\n",
        "Label ; Path\na;pics/0.png\nb;pics/1.png",
        'label\tid\tpath\na\t7\tpics/0.png\n\nb\t8\t"pics/1.png"\n',
    ],
    ids=["plain", "excel", "semicolons", "tabs"],
)
def test_the_usual_dialects_are_read(load, text):
    dataset = load(text)
    assert dataset.paths == ["pics/0.png", "pics/1.png"]
    assert dataset.labels.tolist() == [0, 1]


def test_rows_without_label_are_unlabelled_and_rows_without_split_go_by_content(load):
    dataset = load("path,label,split\npics/0.png,a,test\npics/1.png,b,\npics/2.png,,\n")
    assert dataset.labels.tolist() == [0, 1, -1]
    assert dataset.splits[0] == "test"
    assert dataset.splits[1] in ("train", "val")
    assert dataset.splits[2] == "none"


def test_a_table_without_any_label_is_an_unlabelled_data_set(load):
    dataset = load("path,label\npics/0.png,\npics/1.png,\n")
    assert dataset.classes == ()
    assert dataset.labels.tolist() == [-1, -1]


def test_strange_names_absolute_paths_and_gifs_named_outright_are_taken(load, tmp_path):
    newline = write_image(tmp_path / "two\nlines.png")
    latin = write_image(tmp_path / os.fsdecode(b"latin-\xe9.png"))
    gif = write_image(tmp_path / "still.gif", kind="GIF")
    rows = [b'"' + os.fsencode(newline.name) + b'",a', os.fsencode(latin.name) + b",b", os.fsencode(gif) + b",b"]
    dataset = load(b"path,label\n" + b"\n".join(rows))
    assert dataset.paths == [newline.name, latin.name, str(gif)]
    assert dataset.read(2) == gif.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path' and no column 'label'; its first line is empty"),
        ("where,label\nx,y\n", "has no column 'path'; its first line is 'where', 'label'. Expected: path,label"),
        ("path,label\n", "names no image: there is nothing below its header"),
        ("path,label\npics/0.png,a\nnone.png,b\n", r"has a file that does not exist in line 3 \('none.png,b,'\)"),
        ("path,label\npics/0.png,a\n,b\n", "has no path in line 3"),
        ("path,label,split\npics/0.png,a,dev\n", r"unknown split \(known: train, .*\) in line 2 \('pics/0.png,a,d"),
        ("path,label,split\npics/0.png,,val\n", "has a split but no label in line 2"),
        ("path,label\npics/0.png,a\npics/0.png,a\n", "has a path for the second time in line 3"),
        ("path,label\npics/0.png,a,b\n", "line 2: 3 values where the header has 2: pics/0.png, a, b"),
        ("path,label\npics/0.png,a\npics/1.png,a\n", "has one class, 'a'"),
        ("path,label\npics\0/0.png,a\n", "line 2|Cannot read"),
        ("pics/0.png,a\npics/1.png,b\n", "Has it no header. Put a first line above, such as path,label"),
        ("pics/0.png 0\npics/1.png 1\n", "Has it no header"),
        ("path,label\n" + "".join(f"{k}.png,a\n" for k in range(9)), r"2 .*, 3 .*, 4 .*, and 6 more\. .*--image-dir"),
    ],
)
def test_a_faulty_table_is_one_clear_error_naming_the_line(load, text, message):
    with pytest.raises(DataError, match=message) as caught:
        load(text)
    assert "labels.csv" in str(caught.value) or "one class" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_named_file_that_is_no_regular_file_is_skipped_with_its_reason(load, tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    dataset = load("path,label\nfifo.png,a\npics/0.png,a\npics/1.png,b\n")
    assert dataset.paths == ["pics/0.png", "pics/1.png"]
    assert dataset.skipped == (("fifo.png", "not a regular file"),)


def test_real_photographs_by_table_equal_the_same_by_folder(photos, tmp_path):
    folder = load_dataset(str(photos / "hymenoptera_data"), cache_dir=tmp_path / "cache")
    root = photos / "hymenoptera_data"
    lines = [
        f"{root / path},{folder.classes[label]},{split}\n"
        for path, label, split in zip(folder.paths, folder.labels, folder.splits, strict=True)
    ]
    table = tmp_path / "table.csv"
    table.write_text("path,label,split\n" + "".join(lines))
    dataset = load_dataset(str(table), cache_dir=tmp_path / "cache")
    assert (dataset.digests == folder.digests).all()
    assert (dataset.labels == folder.labels).all()
    assert (dataset.splits == folder.splits).all()
    assert dataset.classes == folder.classes


@pytest.mark.parametrize("header", ["filename,class", "Image;Category", "FILE_PATH\tlabel_name"])
def test_columns_may_be_called_as_people_call_them_and_a_note_says_which_were_taken(load, header):
    separator = next(one for one in ",;\t" if one in header)
    dataset = load("\n".join([header, *(separator.join((f"pics/{number}.png", "ab"[number])) for number in (0, 1))]))
    assert dataset.classes == ("a", "b") and dataset.paths == ["pics/0.png", "pics/1.png"]
    first = header.split(separator)[0]
    assert any(f"path from {first!r}" in note for note in dataset.notes)


def test_the_usual_names_come_first_and_without_a_note(load):
    dataset = load("class,path,label\nx,pics/0.png,a\ny,pics/1.png,b\n")
    assert dataset.classes == ("a", "b") and not any("Columns" in note for note in dataset.notes)


def test_backslashes_count_as_slashes_where_there_is_no_such_file(load):
    assert load("path,label\npics\\0.png,a\npics\\1.png,b\n").paths == ["pics/0.png", "pics/1.png"]


@pytest.mark.parametrize("way", [" {} ", "file://{}", "FILE://{}", "~/{}", " ~\\{}"])
def test_paths_are_found_as_programs_and_people_write_them(load, tmp_path, monkeypatch, way):
    monkeypatch.setenv("HOME", str(tmp_path))
    written = write_image(tmp_path / "pics/with space.png")
    names = [written.name, "1.png"]
    if "file" in way.lower():
        rows = [way.format(str(tmp_path / "pics" / name).replace(" ", "%20")) for name in names]
    else:
        rows = [way.format(f"pics/{name}").replace("~\\pics/", "~\\pics\\") for name in names]
    dataset = load("path,label\n" + "".join(f"{row},{label}\n" for row, label in zip(rows, "ab", strict=True)))
    assert [dataset.read(row) for row in range(2)] == [(tmp_path / "pics" / name).read_bytes() for name in names]


def test_a_file_whose_name_begins_with_a_space_or_a_tilde_is_itself(load, tmp_path):
    for name in (" a.png", "~b.png"):
        write_image(tmp_path / name)
    assert load("path,label\n a.png,a\n~b.png,b\n").paths == [" a.png", "~b.png"]


@pytest.mark.parametrize(("name", "hint"), [("t.xlsx", "saved as CSV"), ("t.csv.gz", "unpack it"), ("t.json", "jsonl")])
def test_what_holds_a_table_in_another_way_says_what_to_do(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"neither a folder.*{hint}"):
        load_dataset(str(tmp_path / name), cache_dir=tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="a name there cannot hold a backslash")
def test_a_file_whose_name_holds_a_backslash_is_itself(load, tmp_path):
    write_image(tmp_path / "pics\\0.png")
    assert load("path,label\npics\\0.png,a\npics/1.png,b\n").paths[0] == "pics\\0.png"


def test_two_spellings_of_a_label_are_one_class(load):
    dataset = load("path,label\npics/0.png,caf\u00e9\npics/1.png,cafe\u0301\npics/2.png,tea\n")
    assert dataset.classes == ("caf\u00e9", "tea") and dataset.labels.tolist() == [0, 0, 1]
    assert any("taken as one class" in note for note in dataset.notes)


def test_a_utf_16_table_as_spreadsheet_programs_write_it_is_read(load):
    dataset = load("Image\tClass\r\npics/0.png\tkäfer\r\npics/1.png\tbiene\r\n".encode("utf-16"))
    assert dataset.paths == ["pics/0.png", "pics/1.png"] and dataset.classes == ("biene", "käfer")


def test_a_windows_1252_table_gives_its_names_with_a_note(load, tmp_path):
    write_image(tmp_path / "käfer.png")
    dataset = load("path,label\nkäfer.png,käfer\npics/1.png,biene\n".encode("cp1252"))
    assert dataset.paths[0] == "käfer.png" and dataset.classes == ("biene", "käfer")
    assert any("Windows-1252: käfer" in note for note in dataset.notes)


def test_names_without_extension_are_found_by_their_stem(load, tmp_path):
    assert load("id,label\npics/0,a\npics/1,b\n").paths == ["pics/0.png", "pics/1.png"]
    write_image(tmp_path / "pics/2.jpg", kind="JPEG")  # beside 2.png: which one is meant cannot be told
    with pytest.raises(DataError, match="does not exist in line 3"):
        load("id,label\npics/0,a\npics/2,b\n")


def test_columns_and_the_images_folder_can_be_named(load, tmp_path):
    (tmp_path / "kaggle.csv").write_text("number,label,fold,breed\n0,x,train,cat\n1,x,val,dog\n2,x,test,cat\n")
    asked = f"{tmp_path}/kaggle.csv[path=Number,label=breed,split=fold,images={tmp_path}/pics]"
    dataset = load_dataset(asked, cache_dir=tmp_path / "cache")
    assert dataset.root == tmp_path / "pics" and dataset.paths == ["0.png", "1.png", "2.png"]
    assert dataset.classes == ("cat", "dog") and dataset.splits.tolist() == ["train", "val", "test"]
    assert len(load_dataset(asked + "[:3]", cache_dir=tmp_path / "cache")) == 3
    with pytest.raises(DataError, match="no folder"):
        load_dataset(f"{tmp_path}/kaggle.csv[images={tmp_path}/nowhere]", cache_dir=tmp_path / "cache")
    with pytest.raises(PipelineError, match=r"Unknown column of .* 'bred'. Did you mean 'breed'"):
        load_dataset(f"{tmp_path}/kaggle.csv[path=number,label=bred]", cache_dir=tmp_path / "cache")
    with pytest.raises(PipelineError, match=r"Unknown option of a table 'lable'. Did you mean 'label'"):
        load_dataset(f"{tmp_path}/kaggle.csv[lable=breed]", cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="is no table"):
        load_dataset(f"{tmp_path}/pics[label=breed]", cache_dir=tmp_path / "cache")


def test_conflicting_labels_of_one_image_are_listed_together_however_its_path_is_written(load):
    with pytest.raises(DataError, match=r"two labels for each of 2 images: .*0.png' \(a in line 2, b in 4\), .*1"):
        load("path,label\npics/0.png,a\npics/1.png,b\n./pics/0.png,b\npics//1.png,a\n")


def test_several_tables_are_one_data_set_and_their_names_tell_the_splits(load, tmp_path):
    (tmp_path / "pets-train.csv").write_text("path,label\npics/0.png,a\npics/1.png,b\n")
    (tmp_path / "pets-val.csv").write_text("path,label\npics/2.png,a\npics/3.png,b\n")
    dataset = load_dataset(f"{tmp_path}/pets-{{train,val}}.csv", cache_dir=tmp_path / "cache")
    assert dataset.name == "pets" and dataset.splits.tolist() == ["train", "train", "val", "val"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tables_of_paths_may_be_json_lines_or_parquet(load, tmp_path, kind):
    rows = [{"file_name": f"pics/{number}.png", "label": number % 2, "score": 0.5} for number in range(4)]
    if kind == "jsonl":
        dataset = load("\n".join(map(json.dumps, rows)), "metadata.jsonl")
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        dataset = load_dataset(str(tmp_path / "rows.parquet"), cache_dir=tmp_path / "cache")
    assert dataset.paths == [row["file_name"] for row in rows]
    assert dataset.classes == ("0", "1") and dataset.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="line 1: 'label' holds a list"):
        load(json.dumps({"path": "pics/0.png", "label": ["a", "b"]}), "lists.jsonl")


LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cf", "Co", "Cn"))
WORDS = st.text(LETTERS, min_size=1, max_size=9)
DIALECTS = {"separator": st.sampled_from(",;\t"), "end": st.sampled_from(("\n", "\r\n")),
            "encoding": st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")),
            "header": st.sampled_from(("path label", "Filename Class", "IMAGE category", "file target"))}  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(WORDS, min_size=4, max_size=6), **DIALECTS)
def test_any_labels_in_any_dialect_come_back_as_they_were_written(load, labels, separator, encoding, end, header):
    labels = [unicodedata.normalize("NFC", label) for label in labels]
    text = io.StringIO()
    table = csv.writer(text, delimiter=separator, lineterminator=end)
    table.writerow(header.split())
    table.writerows((f"pics/{number}.png", label) for number, label in enumerate(labels))
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    if len(set(labels)) < 2:
        return
    dataset = load(mark + text.getvalue().encode(encoding))
    assert [dataset.classes[label] for label in dataset.labels] == labels
