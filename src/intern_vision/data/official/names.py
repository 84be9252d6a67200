"""Label names, in index order, of the sets whose files do not hold them."""

DIGITS = tuple("0123456789")
"""SVHN."""

EMOTIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
"""FER2013."""

RETINOPATHY_GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
"""Diabetic Retinopathy."""

LYMPH_NODES = ("healthy lymph node tissue", "lymph node tumor tissue")
"""PatchCamelyon."""

FLOWERS = (
    *("pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily"),
    *("moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea"),
    *("spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily", "balloon flower"),
    *("giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger", "grape hyacinth"),
    *("corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william", "carnation"),
    *("garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower"),
    *("great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia"),
    *("bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia"),
    *("wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium"),
    *("orange dahlia", "pink-yellow dahlia", "cautleya spicata", "japanese anemone", "black-eyed susan"),
    *("silverbush", "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower"),
    *("tree poppy", "gazania", "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower"),
    *("lotus", "toad lily", "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose"),
    *("tree mallow", "magnolia", "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss"),
    *("foxglove", "bougainvillea", "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower"),
    *("trumpet creeper", "blackberry lily"),
)
"""Flowers-102: the categories of its web page in the order of ``imagelabels.mat``."""

TRAFFIC_SIGNS = (
    *(f"speed limit {speed}" for speed in ("20", "30", "50", "60", "70", "80")),
    *("end of speed limit 80", "speed limit 100", "speed limit 120", "no overtaking", "no overtaking by lorries"),
    *("priority at the next crossing", "priority road", "give way", "stop", "no vehicles", "no lorries", "no entry"),
    *("danger", "bend to the left", "bend to the right", "double bend", "bumpy road", "slippery road"),
    *(
        "road narrows on the right",
        "road works",
        "traffic lights",
        "pedestrians",
        "children",
        "bicycles",
        "ice or snow",
    ),
    *("wild animals", "end of all limits", "turn right ahead", "turn left ahead", "ahead only"),
    *("straight on or right", "straight on or left", "keep right", "keep left", "roundabout"),
    *("end of no overtaking", "end of no overtaking by lorries"),
)
"""GTSRB: what the 43 signs mean, in the order of their class ids."""

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
"""PASCAL VOC; its files write them without blanks."""
