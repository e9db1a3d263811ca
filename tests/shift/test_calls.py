"""What is asked of a pipeline: its classes."""

from nag.shift.calls import classes_of
from tests.seams.zoo_transformers import dit


def test_named_classes_are_all_that_a_dit_has():
    pipe = dit()
    assert classes_of(pipe) == pipe.transformer.config.num_embeds_ada_norm
    named = type(pipe)(**pipe.components, id2label={"0": "shirt, top", "1": "bag", "2": "boot"})
    assert named.labels == {"shirt": 0, "top": 0, "bag": 1, "boot": 2}
    assert classes_of(named) == 3
