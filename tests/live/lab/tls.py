"""Certificates for QEMU's TLS, made for one test by openssl."""

from pathlib import Path

from .proc import run

EXTENSIONS = {
    "ca": "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n",
    "server": "basicConstraints=critical,CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\n"
              "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:{name}{ip}\n",
    "client": "basicConstraints=critical,CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\n"
              "extendedKeyUsage=clientAuth\n",
}


class Authority:
    """A CA, and directories of certificates as QEMU wants them."""

    def __init__(self, lab, name="ca"):
        self.dir = Path(lab.path(f"tls-{name}"))
        self.dir.mkdir()
        self._request("ca", name)
        self._sign("ca", f"-signkey {self.dir}/ca-key.pem", EXTENSIONS["ca"])

    def _request(self, what, name):
        run(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-subj", f"/CN={name}", "-keyout", self.dir / f"{what}-key.pem",
             "-out", self.dir / f"{what}.csr"])

    def _sign(self, what, by, extensions):
        conf = self.dir / f"{what}.ext"
        conf.write_text(extensions)
        run(["openssl", "x509", "-req", "-in", self.dir / f"{what}.csr", "-days", "30",
             *by.split(), "-extfile", conf, "-out", self.dir / f"{what}-cert.pem"])

    def issue(self, server="destination", client="source", ip="127.0.0.1"):
        """Certificates for both ends; returns the directory."""
        for what, name in (("server", server), ("client", client)):
            self._request(what, name)
            self._sign(what, f"-CA {self.dir}/ca-cert.pem -CAkey {self.dir}/ca-key.pem"
                             " -CAcreateserial",
                       EXTENSIONS[what].format(name=name, ip=f",IP:{ip}" if ip else ""))
        return str(self.dir)
