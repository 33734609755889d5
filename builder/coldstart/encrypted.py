"""A certificate for one measurement: soci-snapshotter pulls layers side by side over TLS alone, from whatever registry."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from builder.errors import ToolError

_NAME = "layerwright"
_FROM, _UNTIL = datetime.datetime(2020, 1, 1), datetime.datetime(2120, 1, 1)


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server on the loopback encrypts with, and the file of the certificate that its clients have to trust.

    Key and certificate are new, and lie in `folder`. Raises `ToolError` where the library that makes them is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ToolError(
            "layers are pulled side by side over TLS alone, and certificates are made by cryptography, which is not installed",
            hint="pip install 'layerwright[cache]'",
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "registry.crt", folder / "registry.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.touch(mode=0o600)
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, no_password))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return context, certificate
