"""Images: from what a request names to clean bytes, without reaching where they must not."""

from vora_serve.gateway.images.documents import DocumentLoader, DocumentRef
from vora_serve.gateway.images.loader import ImageLoader, ImageRef, LoadedImages
from vora_serve.gateway.images.resolver import Resolver, SystemResolver

__all__ = [
    "DocumentLoader",
    "DocumentRef",
    "ImageLoader",
    "ImageRef",
    "LoadedImages",
    "Resolver",
    "SystemResolver",
]
