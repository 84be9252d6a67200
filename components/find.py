"""Finding a registered model's weights, as a component."""

from kfp.dsl import Model, Output

from intern_components.base import component


@component
def find(model: str, result: Output[Model]):
    """Looks a model up in the registry.

    Args:
        model: ``models:/NAME@ALIAS``, or the address of committed weights on the store.
        result: Ref of the weights.
    """
    from intern_vision.steps import find_weights

    find_weights(model, result.path)
