"""Class lists of public datasets, one JSON file each; ``intern_vision.data.labels.vocabulary`` reads them."""
