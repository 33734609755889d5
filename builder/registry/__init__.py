"""Registries: references, credentials, and repositories as sources and targets of images."""

from builder.registry.auth import DeniedError
from builder.registry.credentials import Credentials, CredentialsError, Keychain
from builder.registry.outgoing import DamagedBlobError
from builder.registry.reference import BadReferenceError, Reference
from builder.registry.repository import MANIFESTS, Repository
from builder.registry.session import RegistryError
from builder.registry.stream import NoRangesError, WrongBytesError

__all__ = [
    "MANIFESTS",
    "BadReferenceError",
    "Credentials",
    "CredentialsError",
    "DamagedBlobError",
    "DeniedError",
    "Keychain",
    "NoRangesError",
    "Reference",
    "RegistryError",
    "Repository",
    "WrongBytesError",
]
