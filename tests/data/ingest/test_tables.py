import http.server
import json
import socket
import threading
from collections import Counter

import pytest
from ingest_parts import encoded, write

from intern_vision.data.manifest_store import read_bytes
from intern_vision.errors import DataError


class Handler(http.server.BaseHTTPRequestHandler):
    asked = Counter()

    def do_GET(self):
        Handler.asked[self.path] += 1
        name = self.path.strip("/").split("?")[0]
        if name.startswith("good"):
            self.answer(200, encoded(seed=int(name[4:] or 0)))
        elif name == "second_try":
            self.answer(503 if Handler.asked[self.path] == 1 else 200, encoded(seed=50))
        elif name == "loop":
            self.answer(302, b"", Location="/loop")
        elif name == "large":
            self.answer(200, bytes(60_000))
        elif name == "busy":
            self.answer(503, b"")
        elif name == "page":
            self.answer(200, b"<html>sign in</html>")
        else:
            self.answer(404, b"")

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        return None


@pytest.fixture
def web():
    Handler.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_rows_of_all_three_kinds_of_table(take_up, tmp_path):
    for number in range(3):
        write(tmp_path / "in" / "pictures" / f"{number}.png", encoded(seed=number))
    rows = [
        {"Image_Path": "pictures/0.png", "caption": "a, b", "labels": "cat|dog", "split": "valid", "license": "CC0"},
        {"Image_Path": str(tmp_path / "in/pictures/1.png"), "caption": "", "labels": "", "split": "", "license": ""},
        {
            "Image_Path": f"file://{tmp_path}/in/pictures/2.png",
            "caption": "é",
            "labels": "dog",
            "split": "",
            "license": "",
        },
    ]
    header = list(rows[0])
    found = []
    for separator, name in ((",", "a.csv"), ("\t", "a.tsv")):
        quoted = [[f'"{row[field]}"' for field in header] for row in rows]
        write(tmp_path / "in" / name, "\ufeff" + "\n".join(separator.join(line) for line in [header, *quoted]) + "\n")
        found.append(take_up({"uri": str(tmp_path / "in" / name), "licence": "MIT"}))
    lines = [row | {"labels": row["labels"].split("|") if row["labels"] else None} for row in rows]
    write(tmp_path / "in" / "a.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
    found.append(take_up({"uri": str(tmp_path / "in" / "a.jsonl"), "licence": "MIT"}))
    for taken in found:
        assert taken.reasons == []
        row = taken.by_name("pictures/0.png")
        assert (row["caption"], row["labels"], row["split"], row["licence"]) == ("a, b", ["cat", "dog"], "val", "CC0")
        row = taken.by_name("pictures/1.png")
        assert (row["caption"], row["labels"], row["split"], row["licence"]) == (None, None, "", "MIT")
        assert taken.by_name("pictures/2.png")["caption"] == "é"
        assert taken.info.sources[0].tasks["multilabel"].class_names == ("cat", "dog")
        assert taken.rows == found[0].rows


def test_what_is_wrong_with_a_row_sets_it_apart(take_up, tmp_path):
    for number in range(9):
        write(tmp_path / "in" / f"{number}.png", encoded(seed=number))
    lines = [b"file,caption,label,split", b"0.png,fine,cat,train", b"1.png,caf\xe9,cat,", b"../2.png,,cat,"]
    lines += [b"4.png,,cat,someday", b",none,cat,", b"0.png,again,dog,", b"none.png,,cat,", b"ftp://a/5.png,,cat,"]
    lines += [b"6.png,,cat,,more", b"s3://x,,cat,", b"7.png,short"]
    write(tmp_path / "in" / "list.csv", b"\n".join(lines))
    taken = take_up(tmp_path / "in" / "list.csv")
    reasons = {row["reason"].split(": ")[1]: row["reason"] for row in taken.rows if row["status"] != "ok"}
    expected = {
        "line 3": "text: line 3: caption is not UTF-8 text; save the table as UTF-8",
        "line 4": f"path: line 4: '../2.png' leads out of {tmp_path}/in",
        "line 5": "split: line 5: expected train, val or test, got 'someday'",
        "line 6": "row: line 6: names no image",
        "line 7": "duplicate: line 7: is listed twice",
        "line 8": f"missing: line 8: no file {tmp_path}/in/none.png",
        "line 9": "path: line 9: 'ftp://a/5.png': expected a path or an http://, https:// or s3:// address",
        "line 10": "row: line 10: has more cells than the header",
        "line 11": "path: line 11: 's3://x': expected s3://bucket/key with a bucket name",
    }
    assert reasons.keys() == expected.keys()
    assert [line for line in expected if not reasons[line].startswith(expected[line])] == []
    assert taken.info.num_ok == 2 and taken.info.steps[0].counts["path"] == 3
    (kept,) = [row for row in taken.rows if row["uri"].endswith("/0.png") and row["status"] == "ok"]
    assert kept["labels"] == ["cat"] and kept["caption"] == "fine"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "a.csv",
            "caption,label\nx,y\n",
            r"a.csv: expected a column with the image \(file, path, .*\), got caption, label",
        ),
        ("a.csv", "file,label\n", "a.csv: no row in it"),
        ("a.jsonl", '{"file": "0.png"}\n{"file"', "a.jsonl: line 2: expected a JSON object: "),
        ("a.jsonl", '{"file": "0.png"}\n[1]', "a.jsonl: line 2: expected a JSON object, got list"),
        ("a.jsonl", '{"file": "0.png"}\n' + '{"file":' * 50_000, "a.jsonl: line 2: expected a JSON object: maximum"),
        ("a.csv", "file,caption\n0.png," + "x" * 200_000, "a.csv: line 2: not a row of the table: field larger than"),
    ],
)
def test_what_is_wrong_with_the_table_ends_the_ingest(take_up, tmp_path, name, text, line):
    write(tmp_path / "in" / "0.png", encoded())
    with pytest.raises(DataError, match=line):
        take_up(write(tmp_path / "in" / name, text))


def test_a_name_that_no_file_can_have_is_one_row(take_up, tmp_path):
    write(tmp_path / "in" / "0.png", encoded())
    lines = ['{"file": "0.png"}', '{"file": "a\\u0000b.png"}', '{"file": "/a\\u0000b.png"}']
    taken = take_up(write(tmp_path / "in" / "a.jsonl", "\n".join(lines)))
    assert taken.info.num_ok == 1 and [reason.partition(": line ")[0] for reason in taken.reasons] == ["path", "path"]


def test_addresses_are_fetched_within_limits(take_up, tmp_path, web):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/x.png"
    pages = ["good1", "good2?size=3", "second_try", "gone", "loop", "large", "busy", "page"]
    urls = [*(f"{web}/{page}" for page in pages), dead, "http://user:secret@host/x.png"]
    path = write(tmp_path / "in.tsv", "url\ttext\n" + "".join(f"{url}\tpicture {n}\n" for n, url in enumerate(urls)))
    fetching = {"private_urls": True, "backoff_s": 0.01, "timeout_s": 5.0}
    taken = take_up(path, fetch=fetching, max_bytes=50_000)
    # At once: the URLs are mostly waited for.
    reasons = {row["caption"]: row["reason"] for row in taken.rows if row["status"] != "ok"}
    expected = {
        "picture 3": f"fetch: line 5: {web}/gone: answered 404 Not Found; expected a picture",
        "picture 4": f"fetch: line 6: {web}/loop: more than 3 redirects",
        "picture 5": f"fetch: line 7: {web}/large: more than 50000 bytes; send a smaller picture",
        "picture 6": f"fetch: line 8: {web}/busy: answered 503 Service Unavailable; expected a picture (tried 3 times)",
        "picture 7": "decode: line 9: not an image that can be decoded",
        "picture 8": f"fetch: line 10: {dead}: cannot be reached (Connection refused) (tried 3 times)",
        "picture 9": "fetch: line 11: http://host: expected an address without user and password",
    }
    assert reasons == expected
    assert Handler.asked["/busy"] == 3 and Handler.asked["/second_try"] == 2 and Handler.asked["/gone"] == 1
    good = next(row for row in taken.rows if row["caption"] == "picture 0")
    assert read_bytes(good["uri"]) == encoded(seed=1) and "/blobs/" in good["uri"]
    Handler.asked.clear()
    again = take_up(path, fetch=fetching, max_bytes=50_000, earlier=taken)
    assert again.facts["num_taken_over"] == 3 and again.rows == taken.rows
    assert not any(page.startswith(("/good", "/second")) for page in Handler.asked) and Handler.asked["/gone"] == 1


def test_addresses_of_this_machine_are_refused_unless_allowed(take_up, tmp_path, web):
    write(tmp_path / "in" / "0.png", encoded())
    taken = take_up(write(tmp_path / "in" / "a.csv", f"url\n0.png\n{web}/good1\n"))
    assert taken.reasons[0].endswith("/good1: leads to an address that is not public; such are not read here")
    assert not Handler.asked
