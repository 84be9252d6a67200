"""The 26 datasets of GV-B (arXiv 2111.08687; the table in the README of the repository gv-benchmark) as data.

GV-B names datasets, classes and metrics; it publishes neither its lists nor how it reads faces and depth. What is not
given there is decided in ``split_note``, and ``certainty`` says how far a row's figures are known. The package holds no
data: a person fetches a set under its licence and ``intern_vision.data.official`` reads it as downloaded.
"""

from dataclasses import dataclass

from intern_vision.errors import ConfigError
from intern_vision.task import Family

_MAKERS = "counts as its makers state them, not recounted on a copy"
_OURS = "no list was published: ours by a seeded rule, so images differ from GV-B's at equal counts"


@dataclass(slots=True, frozen=True, kw_only=True)
class SuiteRow:
    """One dataset of the benchmark.

    Attributes:
        name: slug; the folder ``<data root>/<name>/`` holds the set as downloaded and unpacked.
        title: name in tables.
        family: task family.
        metric: name of the metric it is scored by.
        num_classes: label names; 0 for depth.
        num_train: training images that a complete copy gives.
        num_val: official validation images, likewise; 0 where they belong to the training or do not exist.
        num_test: images that are scored, likewise.
        ten_percent: images at 10 % of the labels; exact where classes are of one size, else within a few by rounding.
        reader: which function of ``intern_vision.data.official`` reads it.
        official_format: files of the layout.
        licence: terms of the images as far as known; only WIDER FACE's were read at their source.
        source_url: where a person gets it.
        non_commercial: whether the terms shut out commercial use, or are unstated and meant for research.
        certainty: what about this row is verified and what is not.
        split_note: which split is used where several exist.
        depth_scale: metres per unit of the 16-bit depth image that shards hold.
        max_missing_share: share of the listed images that may be unusable, in [0, 1], before preparing stops.
    """

    name: str
    title: str
    family: Family
    metric: str
    num_classes: int
    num_train: int
    num_val: int
    num_test: int
    ten_percent: int
    reader: str
    official_format: str
    licence: str
    source_url: str
    non_commercial: bool
    certainty: str = _MAKERS
    split_note: str = "as given"
    depth_scale: float = 0.001
    max_missing_share: float = 0.05


def find_row(name: str) -> SuiteRow:
    """The row of a dataset.

    Raises:
        ConfigError: the suite has no such dataset; lists those it has.
    """
    found = next((row for row in SUITE if row.name == name), None)
    if found is None:
        raise ConfigError(f"dataset {name!r} is not in the suite; known: {', '.join(row.name for row in SUITE)}")
    return found


def suite_table() -> str:
    """The suite as two Markdown tables: what is scored, and where a copy comes from."""
    scored = [
        "| name | dataset | family | classes | train / val / test | 10 % | metric |",
        "|---|---|---|---|---|---|---|",
    ]
    fetched = [
        "| name | files | licence | non-commercial | from | split | certainty |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in SUITE:
        sizes = " / ".join(f"{count:,}" if count else "-" for count in (row.num_train, row.num_val, row.num_test))
        classes = row.num_classes or "-"
        about = f"| `{row.name}` | {row.title} | {row.family} | {classes} | {sizes}"
        scored.append(f"{about} | {row.ten_percent:,} | `{row.metric}` |")
        non_commercial = "yes" if row.non_commercial else "no"
        fetched.append(
            f"| `{row.name}` | {row.official_format} | {row.licence} | {non_commercial} | <{row.source_url}> "
            f"| {row.split_note} | {row.certainty} |"
        )
    return "\n".join([*scored, "", *fetched]) + "\n"


def _classify(
    name: str, title: str, num_classes: int, counts: tuple[int, int, int, int], reader: str, **rest: str | bool | float
) -> SuiteRow:
    """A classification row; ``counts`` are train, val, test and 10 %."""
    num_train, num_val, num_test, ten_percent = counts
    values = {"metric": "top1", "non_commercial": True} | rest
    return SuiteRow(
        name=name,
        title=title,
        family="classify",
        num_classes=num_classes,
        num_train=num_train,
        num_val=num_val,
        num_test=num_test,
        ten_percent=ten_percent,
        reader=reader,
        **values,  # type: ignore[arg-type]
    )


SUITE: tuple[SuiteRow, ...] = (
    _classify(
        *("cifar10", "CIFAR-10", 10, (50_000, 0, 10_000, 5_000), "cifar"),
        official_format="`cifar-10-batches-py/data_batch_1..5`, `test_batch`, `batches.meta` (pickles)",
        licence="none stated",
        source_url="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    _classify(
        *("cifar100", "CIFAR-100", 100, (50_000, 0, 10_000, 5_000), "cifar"),
        official_format="`cifar-100-python/train`, `test`, `meta` (pickles)",
        licence="none stated",
        source_url="https://www.cs.toronto.edu/~kriz/cifar.html",
        split_note="fine labels",
    ),
    _classify(
        *("food101", "Food-101", 101, (75_750, 0, 25_250, 7_575), "food101"),
        official_format="`images/<class>/*.jpg`, `meta/classes.txt`, `train.txt`, `test.txt`",
        licence="images are not owned by ETH Zurich; research use",
        source_url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    _classify(
        *("oxford_pets", "Oxford-IIIT Pets", 37, (3_680, 0, 3_669, 368), "oxford_pets"),
        metric="mean_per_class",
        official_format="`images/*.jpg`, `annotations/trainval.txt`, `test.txt`",
        licence="CC BY-SA 4.0",
        source_url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        non_commercial=False,
    ),
    _classify(
        *("flowers102", "Flowers-102", 102, (2_040, 0, 6_149, 204), "flowers102"),
        metric="mean_per_class",
        official_format="`jpg/image_*.jpg`, `imagelabels.mat`, `setid.mat`",
        licence="unstated; research use",
        source_url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        certainty="204 images at 10 %, two a class, as the paper says; " + _MAKERS,
        split_note="official train and val together are the training images",
    ),
    _classify(
        *("sun397", "SUN397", 397, (19_850, 0, 19_850, 1_985), "sun397"),
        official_format="`<letter>/<class>/*.jpg`, `ClassName.txt`, `Training_01.txt`, `Testing_01.txt`",
        licence="research use",
        source_url="https://vision.princeton.edu/projects/2010/SUN/",
        split_note="partition 1",
    ),
    _classify(
        *("stanford_cars", "Stanford Cars", 196, (8_144, 0, 8_041, 814), "stanford_cars"),
        official_format="`cars_train/*.jpg`, `cars_test/*.jpg`, `devkit/*.mat`, `cars_test_annos_withlabels.mat`",
        licence="non-commercial research",
        source_url="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        certainty=_MAKERS + "; the address no longer serves the archives",
    ),
    _classify(
        *("dtd", "DTD", 47, (3_760, 0, 1_880, 376), "dtd"),
        official_format="`images/<class>/*.jpg`, `labels/train1.txt`, `val1.txt`, `test1.txt`",
        licence="research use",
        source_url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        certainty=_MAKERS + "; whether GV-B's 10 % is of 1,880 or of 3,760 images is unknown",
        split_note="split 1; train and val together are the training images, as in CLIP",
    ),
    _classify(
        *("caltech101", "Caltech-101", 102, (3_060, 0, 6_085, 306), "caltech101"),
        metric="mean_per_class",
        official_format="`101_ObjectCategories/<class>/*.jpg`, `BACKGROUND_Google` among them",
        licence="CC BY 4.0",
        source_url="https://data.caltech.edu/records/mzrjq-6wc02",
        non_commercial=False,
        certainty="306 images at 10 % as the paper says; " + _OURS,
        split_note="30 images a class for training by our seeded rule, the rest is scored",
    ),
    _classify(
        *("fgvc_aircraft", "FGVC-Aircraft", 100, (6_667, 0, 3_333, 667), "fgvc_aircraft"),
        metric="mean_per_class",
        official_format="`data/images/*.jpg`, `data/variants.txt`, `data/images_variant_{trainval,test}.txt`",
        licence="non-commercial research",
        source_url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        split_note="100 variants; train and val together are the training images",
    ),
    _classify(
        *("svhn", "SVHN", 10, (73_257, 0, 26_032, 7_326), "svhn"),
        official_format="`train_32x32.mat`, `test_32x32.mat`",
        licence="non-commercial use",
        source_url="http://ufldl.stanford.edu/housenumbers/",
        split_note="cropped digits; the 531,131 extra images are not used",
    ),
    _classify(
        *("eurosat", "EuroSAT", 10, (16_200, 5_400, 5_400, 1_620), "class_folders"),
        official_format="`2750/<class>/*.jpg` (RGB)",
        licence="MIT",
        source_url="https://github.com/phelber/EuroSAT",
        non_commercial=False,
        certainty="counts of VTAB's code; " + _OURS,
        split_note="VTAB's 60/20/20 by our seeded rule, class by class, or `lists/{train,val,test}.txt` where given",
    ),
    _classify(
        *("resisc45", "RESISC45", 45, (18_900, 6_300, 6_300, 1_890), "class_folders"),
        official_format="`NWPU-RESISC45/<class>/*.jpg`",
        licence="research use",
        source_url="https://gcheng-nwpu.github.io/#Datasets",
        certainty="counts of VTAB's code; " + _OURS,
        split_note="VTAB's 60/20/20 by our seeded rule, class by class, or `lists/{train,val,test}.txt` where given",
    ),
    _classify(
        *("retinopathy", "Diabetic Retinopathy", 5, (35_126, 10_906, 42_670, 3_513), "retinopathy"),
        metric="quadratic_kappa",
        official_format="`train/*.jpeg`, `test/*.jpeg`, `trainLabels.csv`, `retinopathy_solution.csv`",
        licence="competition terms (EyePACS)",
        source_url="https://www.kaggle.com/c/diabetic-retinopathy-detection",
        certainty="counts from memory of TFDS; top-1 is scored, and kappa beside it because class 0 alone gives 73.5 %",
        split_note="val = public test, test = private test; images made as in TFDS' btgraham-300",
    ),
    _classify(
        *("fer2013", "FER2013", 7, (28_709, 3_589, 3_589, 2_871), "fer2013"),
        official_format="`fer2013.csv` (or `icml_face_data.csv`)",
        licence="competition terms",
        source_url="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        split_note="val = public test, test = private test",
    ),
    _classify(
        *("ucf101", "UCF101 (frames)", 101, (9_537, 0, 3_783, 954), "ucf101"),
        official_format="`UCF-101/<class>/*.avi`, `ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt`",
        licence="research use",
        source_url="https://www.crcv.ucf.edu/data/UCF101.php",
        certainty=_MAKERS + "; CLIP lists 1,794 test frames, which no official list gives",
        split_note="split 1, middle frame of each video",
    ),
    _classify(
        *("gtsrb", "GTSRB", 43, (26_640, 0, 12_630, 2_664), "gtsrb"),
        official_format="`GTSRB/Training/<class>/` (`GT-*.csv`, `*.ppm`), `GTSRB/Final_Test/`, `GT-final_test.csv`",
        licence="CC0 1.0",
        source_url="https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html",
        non_commercial=False,
        split_note="GTSRB-Training_fixed (26,640), as in CLIP; GTSRB_Final_Training_Images (39,209) where it is alone",
    ),
    _classify(
        *("pcam", "PatchCamelyon", 2, (262_144, 32_768, 32_768, 26_214), "pcam"),
        official_format="`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`",
        licence="CC0 1.0",
        source_url="https://github.com/basveeling/pcam",
        non_commercial=False,
        split_note="as given and in VTAB; CLIP trains on train and val together",
    ),
    _classify(
        *("imagenet", "ImageNet-1K", 1000, (1_281_167, 0, 50_000, 128_117), "imagenet"),
        official_format="`train/<synset>/*.JPEG`, `val/`, `LOC_val_solution.csv`, `LOC_synset_mapping.txt`",
        licence="ILSVRC terms",
        source_url="https://image-net.org/challenges/LSVRC/2012/",
        split_note="the 50,000 validation images are scored",
    ),
    _classify(
        *("kinetics700", "Kinetics-700 (frames)", 700, (494_801, 0, 31_669, 49_480), "kinetics700"),
        official_format="`train.csv`, `validate.csv`, `{train,val}/**/<youtube id>_<start>_<end>.mp4`",
        licence="CC BY 4.0 on annotations; videos belong to their uploaders",
        source_url="https://github.com/cvdfoundation/kinetics-dataset",
        certainty="CLIP's counts, unverified; every copy lacks other videos, and counts follow the copy",
        split_note="validation videos are scored; middle frame of each video; missing videos are listed with a reason",
        max_missing_share=0.5,
    ),
    SuiteRow(
        name="voc0712",
        title="PASCAL VOC 2007 + 2012",
        family="detect",
        metric="voc_ap50",
        num_classes=20,
        num_train=16_551,
        num_val=0,
        num_test=4_952,
        ten_percent=1_655,
        reader="voc_detection",
        official_format="`VOCdevkit/VOC{2007,2012}/{JPEGImages,Annotations,ImageSets/Main}`",
        licence="Flickr terms of use",
        source_url="http://host.robots.ox.ac.uk/pascal/VOC/",
        non_commercial=True,
        split_note="trainval of both years; test of 2007 is scored; 10 % is drawn within each year",
    ),
    SuiteRow(
        name="wider_face",
        title="WIDER FACE",
        family="detect",
        metric="wider_ap",
        num_classes=1,
        num_train=12_880,
        num_val=0,
        num_test=3_226,
        ten_percent=1_288,
        reader="wider_face",
        official_format="`WIDER_{train,val}/images/`, `wider_face_split/*.txt`, `wider_{easy,medium,hard}_val.mat`",
        licence="CC BY-NC-ND 4.0",
        source_url="http://shuoyang1213.me/WIDERFACE/",
        non_commercial=True,
        certainty="counts and licence read on its dataset card",
        split_note="val is scored: the 16,097 test images have no public labels",
    ),
    SuiteRow(
        name="citypersons",
        title="CityPersons",
        family="detect",
        metric="log_average_miss_rate",
        num_classes=1,
        num_train=2_975,
        num_val=0,
        num_test=500,
        ten_percent=298,
        reader="citypersons",
        official_format="`leftImg8bit/{train,val}/<city>/*.png`, `annotations/anno_{train,val}.mat` or COCO-style json",
        licence="Cityscapes terms, non-commercial",
        source_url="https://www.cityscapes-dataset.com/",
        non_commercial=True,
        certainty="counts read on its page; categories as in GV-B's configs",
        split_note="val is scored: the 1,575 test images have no public labels",
    ),
    SuiteRow(
        name="voc2012_seg",
        title="PASCAL VOC 2012 segmentation (augmented)",
        family="segment",
        metric="miou",
        num_classes=21,
        num_train=10_582,
        num_val=0,
        num_test=1_449,
        ten_percent=1_058,
        reader="voc_segmentation",
        official_format="`VOCdevkit/VOC2012/` with `SegmentationClassAug/`, or SBD's `benchmark_RELEASE/dataset/`",
        licence="Flickr terms of use; SBD for research",
        source_url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        non_commercial=True,
        split_note="1,464 VOC and 9,118 SBD images; val is scored; 10 % is drawn within each of the two",
    ),
    SuiteRow(
        name="kitti_eigen",
        title="KITTI depth (Eigen split)",
        family="depth",
        metric="kitti_rmse",
        num_classes=0,
        num_train=23_158,
        num_val=0,
        num_test=652,
        ten_percent=2_316,
        reader="kitti_eigen",
        official_format="`raw/<date>/<drive>/`, `data_depth_annotated/`, `eigen_{train,test}_files_with_gt.txt`",
        licence="CC BY-NC-SA 3.0",
        source_url="https://www.cvlibs.net/datasets/kitti/",
        non_commercial=True,
        certainty="list lengths of BTS' repository: 23,158 and 697, of which 652 have ground truth",
        split_note="BTS' file lists; up to 80 m; 10 % is drawn evenly over drives",
        depth_scale=1 / 256,
    ),
    SuiteRow(
        name="nyu_v2",
        title="NYU Depth v2",
        family="depth",
        metric="nyu_rmse",
        num_classes=0,
        num_train=24_231,
        num_val=0,
        num_test=654,
        ten_percent=2_423,
        reader="nyu_v2",
        official_format="`sync/<scene>/`, `nyudepthv2_{train,test}_files_with_gt.txt`, `nyu_depth_v2_labeled.mat`",
        licence="research use",
        source_url="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        non_commercial=True,
        certainty="list lengths of BTS' repository",
        split_note="BTS' lists; test from the labelled file if there; up to 10 m; 10 % drawn evenly over scenes",
    ),
)
