"""What can be wrong with an array, an artifact or a recipe, by whose fault it is."""


class ActivationShapeError(ValueError):
    """
    An array does not have the shape or dtype that it is scored with.

    The sender's fault. Nothing was changed; the next batch may be scored.
    """


class ArtifactError(ValueError):
    """
    A bundle, data set or SAE on disk is not what it says, or not for this model.

    The fault of whoever built it. One line: file, field, expected, found.
    """


class RecipeError(ValueError):
    """A recipe asks for something that cannot be fitted. One line: file, field, why."""
