"""Exceptions of the model side, one tree: everything a caller may catch derives from VoRAError."""


class VoRAError(Exception):
    """Root of all errors raised on purpose; its message is one sentence fit for a user."""


class ConfigError(VoRAError, ValueError):
    """A configuration value is missing, unknown or contradicts another."""


class CheckpointError(VoRAError, ValueError):
    """A checkpoint is absent, incomplete, of another kind, or has unknown or missing tensors."""


class ImageError(VoRAError, ValueError):
    """An image cannot be turned into tokens: unreadable, too small, too large, too elongated."""


class PlaceholderError(VoRAError, ValueError):
    """The number of image placeholders in a prompt differs from the number of images given."""


class SplitSpanError(VoRAError, RuntimeError):
    """An image span would be computed in part, but its tokens attend to each other."""
