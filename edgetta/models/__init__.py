"""The networks of the papers, and any timm, torchvision or exported model, by one name each."""

from edgetta.models.architectures import cuts, model_names, published_parts
from edgetta.models.model import Model
from edgetta.models.normalise import normalisation_of
from edgetta.models.parts import PublishedParts
from edgetta.models.registry import load_model

__all__ = ["Model", "PublishedParts", "cuts", "load_model", "model_names", "normalisation_of", "published_parts"]
