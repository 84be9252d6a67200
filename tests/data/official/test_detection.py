from collections import Counter

import numpy as np
import pytest
from official_dense_layouts import write_citypersons, write_voc0712, write_wider_face
from official_pictures import corner_box

from intern_vision.data.official import read_official
from intern_vision.errors import DataError


def xyxy(x, y, width, height):
    return [x, y, x + width, y + height]


def test_voc_boxes_difficult_flags_and_strata(tmp_path):
    write_voc0712(tmp_path)
    reading = read_official("voc0712", tmp_path)
    names = reading.tasks["detect"].class_names
    assert len(names) == 20 and names[14] == "person"
    samples = list(reading)
    for index, sample in enumerate(samples[:12]):
        # Pixels x + 1 to x + width, counted from 1, are the width that begins at x.
        assert sample.boxes.tolist() == [xyxy(*corner_box(index % 3)), [1, 2, 12, 13]]
        assert [names[label] for label in sample.box_labels] == [
            ("aeroplane", "dining table", "tv monitor")[index % 3],
            "person",
        ]
        assert sample.box_attributes["difficult"].tolist() == [0, 1]
    # The rarest class within a year decides, so the person of every image does not.
    strata = Counter(sample.stratum for sample in samples if sample.split == "train")
    assert strata == {f"{year} {label}": 2 for year in ("VOC2007", "VOC2012") for label in (0, 10, 19)}


def test_an_xml_with_entities_or_an_unknown_class_is_named(tmp_path):
    folder = write_voc0712(tmp_path, num_train=4, num_test=1)
    path = sorted((folder / "VOCdevkit/VOC2007/Annotations").iterdir())[0]
    text = path.read_text()
    bomb = '<!DOCTYPE a [<!ENTITY x "yyyy"><!ENTITY z "&x;&x;">]>' + text.replace("aeroplane", "&z;")
    path.write_text(bomb)
    with pytest.raises(DataError, match=f"{path.name}: not in the official layout of PASCAL VOC.*Entit"):
        read_official("voc0712", tmp_path)
    path.write_text(text.replace("<name>person</name>", "<name>robot</name>"))
    with pytest.raises(DataError, match=f"{path.name}: .*robot"):
        read_official("voc0712", tmp_path)


def test_wider_faces_carry_their_settings_and_the_invalid_are_ignored(tmp_path):
    write_wider_face(tmp_path)
    samples = list(read_official("wider_face", tmp_path))
    train, test = ([s for s in samples if s.split == split] for split in ("train", "test"))
    assert len(train[-1].boxes) == 0 and set(train[0].box_attributes) == {"ignored"}
    for index, sample in enumerate(test):
        # The third face has no area and is no box.
        assert sample.boxes.tolist() == [xyxy(*corner_box(index % 3)), xyxy(1, 2, 5, 6)]
        assert sample.box_attributes["ignored"].tolist() == [0, 1]
        for setting in ("easy", "medium", "hard"):
            assert sample.box_attributes[setting].tolist() == [1, 0]


def test_wider_without_the_evaluation_files_has_no_settings(tmp_path):
    folder = write_wider_face(tmp_path)
    (folder / "ground_truth/wider_medium_val.mat").unlink()
    samples = list(read_official("wider_face", tmp_path))
    assert {name for sample in samples for name in sample.box_attributes} == {"ignored"}


def test_a_wider_list_cut_short_is_named(tmp_path):
    folder = write_wider_face(tmp_path)
    path = folder / "wider_face_split/wider_face_val_bbx_gt.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(DataError, match="wider_face_val_bbx_gt.txt: not in the official layout of WIDER FACE"):
        read_official("wider_face", tmp_path)


@pytest.mark.parametrize("form", ["mat", "json"])
def test_citypersons_heights_visibility_and_ignored_boxes(tmp_path, form):
    write_citypersons(tmp_path, num_train=4, num_test=2, form=form)
    reading = read_official("citypersons", tmp_path)
    assert reading.tasks["detect"].class_names == ("pedestrian",)
    samples = list(reading)
    for index, sample in enumerate(samples[:4]):
        x, y, width, height = corner_box(index % 3, 120, 160)
        # The ignore region ends with the image, its height does not.
        assert sample.boxes.tolist() == [xyxy(x, y, width, height), [0, 0, 10, 20], [150, 110, 160, 120]]
        assert sample.box_attributes["ignored"].tolist() == [0, 1, 1]
        assert sample.box_attributes["height_px"].tolist() == [height, 20, 20]
        assert np.allclose(sample.box_attributes["visible_share"], [(0.5, 1)[index % 2], 1, 1])
        assert sample.box_labels.tolist() == [0, 0, 0] and sample.stratum == ""


def test_citypersons_without_annotations_is_named(tmp_path):
    folder = write_citypersons(tmp_path)
    (folder / "annotations/anno_val.mat").unlink()
    with pytest.raises(DataError, match="annotations/anno_val.mat: missing; it is part of CityPersons"):
        read_official("citypersons", tmp_path)
