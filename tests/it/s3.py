"""An S3 server that checks signatures, and the metadata service of the machine that it runs on.

Usage: s3.py PORT DIRECTORY ACCESS SECRET
"""

import hashlib
import hmac
import http.server
import json
import os
import sys

PORT, ROOT, ACCESS, SECRET = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
TOKEN = "session-token"
ROLE = {"AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "role-token"}


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        if self.path == "/latest/api/token":
            return self.answer(200, TOKEN.encode())
        self.answer(405)

    def do_GET(self):
        if self.path.startswith("/latest/"):
            return self.metadata()
        if not self.is_signed():
            return self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        path = os.path.join(ROOT, self.path.lstrip("/"))
        if not os.path.exists(path):
            return self.answer(404)
        with open(path, "rb") as file:
            body = file.read()
        tag = '"%s"' % hashlib.md5(body).hexdigest()
        if self.headers.get("If-None-Match") == tag:
            return self.answer(304, ETag=tag)
        self.answer(200, body, ETag=tag)

    def metadata(self):
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            return self.answer(401)
        base = "/latest/meta-data/iam/security-credentials/"
        if self.path == base:
            return self.answer(200, b"deployer")
        if self.path == base + "deployer":
            return self.answer(200, json.dumps(ROLE).encode())
        self.answer(404)

    def is_signed(self):
        scheme, _, rest = self.headers.get("Authorization", "").partition(" ")
        if scheme != "AWS4-HMAC-SHA256":
            return False
        parts = dict(part.strip().split("=", 1) for part in rest.split(","))
        access, day, region, service, end = parts["Credential"].split("/")
        names = parts["SignedHeaders"].split(";")
        lines = "".join("%s:%s\n" % (n, self.headers[n].strip()) for n in names)
        payload = self.headers["x-amz-content-sha256"]
        request = "\n".join(["GET", self.path, "", lines, ";".join(names), payload])
        scope = "/".join([day, region, service, end])
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, digest])
        key = ("AWS4" + SECRET).encode()
        for part in (day, region, service, end):
            key = sign(key, part)
        good = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        needs = {"host", "x-amz-date", "x-amz-content-sha256"}
        return access == ACCESS and needs <= set(names) and good == parts["Signature"]


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
