"""Ingest: images and labels as people have them, in any of several layouts, become the rows of a manifest."""

AUTO = "auto"
LAYOUTS = {
    "image_folder": "<class>/*.jpg, or {train,val,test}/<class>/*.jpg",
    "images": "*.jpg without labels, at any depth when it is asked for",
    "masks": "images/ and masks/*.png of the same names; optional classes.txt",
    "depth": "images/ and depth/*.png (16 bit; scale.txt = metres a unit) or depth/*.npy (metres)",
    "coco": "a .json or annotations/*.json of instances, panoptic or captions beside the images",
    "voc": "Annotations/*.xml, JPEGImages/, optional SegmentationClass/ and ImageSets/",
    "table": "a .csv, .tsv or .jsonl with a path or URL and a caption, label or labels a row",
    "webdataset": "*.tar with <key>.jpg, <key>.txt and <key>.json, as img2dataset writes them",
    "label_studio": "a .json that Label Studio exported",
}
"""Layouts by name, each in a line."""
