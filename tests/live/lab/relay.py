"""A monitor's relay that runs a command once, right before the first line with
a word in it goes to QEMU, or right after: a fault at a moment that is exact.

relay.py FILE ADDRESS WORD before|after COMMAND...   FILE is there: not yet run"""

import os
import selectors
import socket
import subprocess
import sys


def connect(address):
    if address.startswith("tcp:"):
        host, port = address.split(":")[1:]
        return socket.create_connection((host, int(port)))
    qemu = socket.socket(socket.AF_UNIX)
    qemu.connect(address)
    return qemu


def main(armed, address, word, when, *command):
    qemu, rest = connect(address), b""
    ready = selectors.DefaultSelector()
    ready.register(sys.stdin.fileno(), selectors.EVENT_READ)
    ready.register(qemu, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            data = os.read(key.fd, 1 << 16)
            if not data:
                return
            if key.fileobj is qemu:
                os.write(sys.stdout.fileno(), data)
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                meant = f'"{word}"'.encode() in line and os.path.exists(armed)
                if not meant or when == "after":
                    qemu.sendall(line + b"\n")
                if meant:
                    os.unlink(armed)
                    subprocess.run(command, check=True)
                if meant and when == "before":
                    qemu.sendall(line + b"\n")


main(*sys.argv[1:])
