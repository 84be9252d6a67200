"""Random small genotypes for hypothesis."""

from hypothesis import strategies as st

from intern_vision.errors import ConfigError
from intern_vision.models.genotype import Genotype


@st.composite
def genotypes(draw: st.DrawFn, max_image_px: int = 40) -> Genotype:
    """Two to four stages of any operators and down-sampling modules."""
    stages = []
    for _ in range(draw(st.integers(2, 4))):
        stage = {
            "operator": draw(st.sampled_from(["mbconv", "fused_mbconv", "attention", "cross_covariance", "mixer"])),
            "expansion": draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])),
            "width": draw(st.sampled_from([8, 16, 24])),
            "num_blocks": draw(st.integers(1, 3)),
            "stride": draw(st.sampled_from([1, 2])),
            "downsampling": draw(st.sampled_from(["block", "local", "local_global", "global"])),
        }
        stages.append(stage)
    stages[-1]["stride"] = 2
    values = {
        "stem_width": draw(st.sampled_from([8, 16])),
        "stages": stages,
        "head_width": draw(st.sampled_from([0, 32])),
        "head_size": draw(st.sampled_from([4, 8])),
        "squeeze_excite": draw(st.booleans()),
        "drop_path": 0.2,
        "layer_scale_init": 0.5,
        "image_size_px": draw(st.integers(33, max_image_px)),
    }
    try:
        return Genotype.from_dict(values)
    except ConfigError as error:
        # The one combination above that is refused.
        assert "'local' has nothing to do" in str(error)
        for stage in stages:
            if stage["downsampling"] == "local":
                stage["downsampling"] = "block"
        return Genotype.from_dict(values)
